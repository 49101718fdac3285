// One clock for one or several videos: they play, pause and seek in step. The one that is furthest behind leads.

import { calm } from "./dom.js";

const BEHIND = 0.6; // seconds behind the newest picture that "Newest" allows
const APART = 0.25; // seconds between two videos before one jumps; smaller gaps are made up for by speed

export class Together extends EventTarget {
  playing = !calm(); // plays as soon as there is something, unless the person asked for less motion
  ended = false; // whether it stopped because it came to the end
  newest = false;

  constructor(sources) {
    super();
    this.sources = sources;
    this.begun = new Set();
    const tick = () => {
      if (this.closed) return;
      this.#tick();
      this.frame = requestAnimationFrame(tick);
    };
    tick();
  }

  close() {
    this.closed = true;
    cancelAnimationFrame(this.frame);
  }

  get started() {
    return this.sources.filter(({ edge }) => edge > 0);
  }

  get lead() {
    const open = this.started.filter(({ complete }) => !complete).sort((a, b) => a.edge - b.edge);
    return open[0] ?? this.started.sort((a, b) => b.edge - a.edge)[0];
  }

  get time() {
    return this.lead?.element.currentTime ?? 0;
  }

  /** Seconds that all videos that have begun can show. */
  get edge() {
    return this.lead?.edge ?? 0;
  }

  toggle() {
    if (this.lead?.element.ended) this.seek(0);
    this.playing = !this.playing || this.lead?.element.ended === true;
    this.ended = false;
    if (!this.playing) this.newest = false;
    this.#changed();
  }

  seek(seconds) {
    const time = Math.max(0, Math.min(seconds, this.edge - 0.01));
    for (const { element, edge } of this.started) element.currentTime = Math.min(time, edge - 0.01);
    if (time < this.edge - 2 * BEHIND) this.newest = false;
    this.#changed();
  }

  /** Keep the play head at the newest picture, or stop doing so. */
  follow(newest) {
    this.newest = newest;
    if (newest) this.playing = true;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #tick() {
    const { lead } = this;
    if (!lead) return;
    this.#welcome();
    const { element } = lead;
    if (this.playing && element.ended && lead.complete) {
      this.playing = false;
      this.newest = false;
      this.ended = true;
      this.#changed();
    }
    if (this.newest && lead.edge - element.currentTime > BEHIND) element.currentTime = lead.edge - BEHIND / 4;
    this.#run(element, this.playing);
    element.playbackRate = 1;
    for (const other of this.started) if (other !== lead) this.#keepUp(other, element);
    this.before = element.currentTime;
    this.dispatchEvent(new Event("tick"));
  }

  /** A video that begins after the others joins them; where it is too short for that, all go back to the start. */
  #welcome() {
    for (const source of this.started) {
      if (this.begun.has(source)) continue;
      if (this.begun.size) {
        this.seek(this.before < source.edge ? this.before : 0);
        this.playing ||= this.ended;
      }
      this.begun.add(source);
    }
  }

  #keepUp({ element, edge }, lead) {
    const target = Math.min(lead.currentTime, edge - 0.01);
    const gap = target - element.currentTime;
    const moving = this.playing && !lead.paused && lead.readyState > 2 && target === lead.currentTime;
    if (Math.abs(gap) > (moving ? APART : 0.03)) element.currentTime = target;
    element.playbackRate = moving ? Math.max(0.8, Math.min(1.2, 1 + gap)) : 1;
    this.#run(element, moving);
  }

  #run(element, playing) {
    if (playing && element.paused && !element.ended) element.play().catch(() => {}); // interrupted by a pause or a new source
    if (!playing && !element.paused) element.pause();
  }
}
