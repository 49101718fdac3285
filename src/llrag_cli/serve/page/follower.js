// A video as its events tell it: state, shots, blocks with what they retrieved. Continues after a lost connection.

import { links } from "./api.js";
import { reachable } from "./connection.js";

export class Follower extends EventTarget {
  blocks = []; // {start, end, retrieved}: seconds, and frames {frame, seconds, similarity, source}
  fps = null; // speed of generation
  ended = false;

  constructor(video) {
    super();
    this.video = video;
    this.fps = video.llrag.generation_fps ?? null;
    this.#open();
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.source.close();
  }

  #open() {
    const source = (this.source = new EventSource(links.events(this.video.id)));
    const listen = (type, take) =>
      source.addEventListener(
        type,
        event => event.data !== undefined && this.#take(() => take(JSON.parse(event.data))),
      );
    listen("block", block => this.#block(block));
    listen("switch", () => {}); // the status that follows has the new shots
    listen("status", video => (this.video = video));
    listen("done", () => this.#end());
    source.addEventListener("open", () => reachable(true));
    source.addEventListener("error", event => event.data === undefined && this.#lost());
  }

  #block({ block, seconds, fps, retrieved }) {
    this.fps = fps ?? this.fps;
    this.blocks[block] = { end: seconds, retrieved };
    this.blocks[block].start = this.blocks[block - 1]?.end ?? 0;
  }

  #end() {
    this.ended = true;
    this.source.close();
  }

  /** The browser tries again by itself, from the last event on, unless it gave up. */
  #lost() {
    if (this.closed || this.ended) return;
    reachable(false);
    if (this.source.readyState === EventSource.CLOSED) this.timer = setTimeout(() => this.#open(), 2000);
  }

  /** Take in a newer state of the video. */
  update(video) {
    this.#take(() => (this.video = video));
  }

  /** Take in an event; many that arrive at once are one change. */
  #take(action) {
    action();
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      if (!this.closed) this.dispatchEvent(new Event("change"));
    });
  }

  /** The block shown at a time, with its number, or null. */
  at(seconds) {
    let [low, high] = [0, this.blocks.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.blocks[middle]?.end > seconds) high = middle;
      else low = middle + 1;
    }
    const block = this.blocks[low];
    return block ? { number: low, ...block } : null;
  }

  /** The shot shown at a time. */
  shotAt(seconds) {
    return this.video.llrag.shots.findLast(shot => shot.start <= seconds + 0.001) ?? this.video.llrag.shots[0];
  }
}
