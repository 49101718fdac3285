// The growing video in a <video> element through Media Source; where that is impossible, the file, and the page says so.

import { ApiError, api, links } from "./api.js";
import { reachable } from "./connection.js";
import { hasPicture, isOpen } from "./video.js";

const AGAIN = 1500; // milliseconds before a lost stream is asked for again
const KEPT = 20; // seconds before the play head that are kept when the browser's buffer is full

const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource; // Safari on phones has the managed one alone

export class LiveSource extends EventTarget {
  edge = 0; // seconds of video that can be played
  complete = false; // whether the edge is the end of the video
  notice = ""; // what a person must know about the playback

  constructor(element, video) {
    super();
    Object.assign(this, { element, id: video.id });
    this.abort = new AbortController();
    element.disableRemotePlayback = true; // or a managed source does not open
    element.addEventListener("seeking", () => this.#clamp());
    if (isOpen(video) || hasPicture(video)) this.#play(video.llrag.mime);
  }

  close() {
    this.closed = true;
    this.abort.abort();
    this.element.removeAttribute("src");
    this.element.load();
    if (this.address) URL.revokeObjectURL(this.address);
  }

  async #play(mime) {
    if (!Source) return this.#fallBack("This browser cannot play a video while it is generated");
    try {
      await this.#stream(mime);
    } catch (error) {
      if (this.closed || error.name === "AbortError") return undefined;
      if (!(error instanceof DOMException || error instanceof Unplayable)) throw error;
      return this.#fallBack(`Live playback failed (${error.message})`);
    }
    return undefined;
  }

  /** Read the stream to the end of the video; a lost connection begins again, over what is in the buffer already. */
  async #stream(mime) {
    while (!this.closed) {
      try {
        await this.#receive(mime);
        if (!isOpen(await api.video(this.id))) break; // otherwise the server was shut down
      } catch (error) {
        const lost = error instanceof Lost || (error instanceof ApiError && !error.status);
        if (!lost || this.closed) throw error;
        reachable(false);
      }
      await new Promise(resolve => setTimeout(resolve, AGAIN));
    }
    if (this.source?.readyState === "open") this.source.endOfStream();
    this.#finish();
  }

  async #receive(mime) {
    const response = await network(fetch(links.live(this.id), { signal: this.abort.signal }));
    if (!response.ok) throw new Unplayable(`the server answered ${response.status}`);
    reachable(true);
    if (!response.body) return; // there will be nothing to play
    this.buffer?.abort(); // a part that was cut off
    const reader = response.body.getReader();
    for (;;) {
      const { value, done } = await network(reader.read());
      if (done) return;
      this.buffer ??= await this.#open(response.headers.get("X-Llrag-Codecs") || mime);
      await this.#append(value);
    }
  }

  async #open(mime) {
    if (!mime || !Source.isTypeSupported(mime))
      throw new Unplayable(`this browser does not play ${mime || "an unknown format"}`);
    this.source = new Source();
    this.address = URL.createObjectURL(this.source);
    const opened = new Promise(resolve => this.source.addEventListener("sourceopen", resolve, { once: true }));
    this.element.src = this.address;
    await opened;
    return this.source.addSourceBuffer(mime);
  }

  async #append(part) {
    for (;;) {
      try {
        await this.#updated(() => this.buffer.appendBuffer(part));
        break;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        await this.#makeRoom();
      }
    }
    this.#advance();
  }

  /** Drop what was played; if the play head is still there, wait for it. */
  async #makeRoom() {
    const until = this.element.currentTime - KEPT;
    if (this.buffer.buffered.length && until > this.buffer.buffered.start(0)) {
      await this.#updated(() => this.buffer.remove(0, until));
      this.evicted = true;
    } else {
      await new Promise(resolve => setTimeout(resolve, 1000));
    }
    if (this.closed) throw new DOMException("closed", "AbortError");
  }

  #updated(action) {
    return new Promise((resolve, reject) => {
      const failed = () => reject(new Unplayable("the stream could not be decoded"));
      this.buffer.addEventListener("error", failed, { once: true });
      this.buffer.addEventListener(
        "updateend",
        () => {
          this.buffer.removeEventListener("error", failed);
          resolve();
        },
        { once: true },
      );
      action();
    });
  }

  #advance() {
    const { buffered } = this.buffer;
    if (!buffered.length) return;
    this.edge = buffered.end(buffered.length - 1);
    this.dispatchEvent(new Event("advance"));
  }

  #clamp() {
    const buffered = this.element.buffered;
    if (this.complete || !buffered.length || this.element.currentTime >= buffered.start(0)) return;
    this.element.currentTime = buffered.start(0);
    this.#say("The browser no longer holds earlier parts. They can be played again once the video is finished.");
  }

  /** The end: what was dropped from the buffer can be played from the file again. */
  #finish() {
    if (this.closed) return;
    this.complete = true;
    this.#say("");
    if (this.evicted) this.#useFile();
    this.dispatchEvent(new Event("advance"));
  }

  #fallBack(reason) {
    if (this.closed) return;
    this.fallenBack = reason;
    this.#say(`${reason}. The video will play once it is finished.`);
  }

  /** Called when the video is finished: plays its file if the stream could not be played. */
  finished() {
    if (!this.fallenBack || this.complete || this.closed) return;
    this.#useFile();
    this.element.addEventListener(
      "loadedmetadata",
      () => {
        this.edge = this.element.duration;
        this.complete = true;
        this.#say(`${this.fallenBack}. This is the finished file.`);
        this.dispatchEvent(new Event("advance"));
      },
      { once: true },
    );
  }

  #useFile() {
    const { currentTime, paused } = this.element;
    this.element.src = links.file(this.id);
    this.element.currentTime = currentTime;
    if (!paused) this.element.play().catch(() => {}); // the browser wants a click first
  }

  #say(notice) {
    this.notice = notice;
    this.dispatchEvent(new Event("advance"));
  }
}

class Unplayable extends Error {}

class Lost extends Error {}

/** The result of a request; `Lost` if the connection was. */
async function network(request) {
  try {
    return await request;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Lost();
  }
}
