// The length of a shot as a bar on the time line: its end is dragged, or moved with the arrow keys.

import { h } from "./dom.js";
import { duration, trimmed } from "./format.js";
import { SHORTEST } from "./scene.js";

const LONGEST = 3600; // seconds that a handle reaches; the number field and the YAML go further

const KEYS = { ArrowRight: 0.5, ArrowUp: 0.5, ArrowLeft: -0.5, ArrowDown: -0.5, PageUp: 5, PageDown: -5 };

export class ShotBar {
  /** `onlength(seconds)` is called while the handle moves. */
  constructor(onlength) {
    this.onlength = onlength;
    this.handle = h("div", {
      class: "handle",
      role: "slider",
      tabindex: 0,
      "aria-valuemin": SHORTEST,
      "aria-valuemax": LONGEST,
      onkeydown: event => this.#key(event),
      onpointerdown: event => this.#drag(event),
    });
    this.text = h("span", { class: "length" });
    this.bar = h("div", { class: "bar" }, this.text, this.handle);
    this.element = h("div", { class: "track" }, this.bar);
  }

  /** Show a shot of so many seconds that begins at `start`, on a line of `scale` seconds. */
  show(name, start, seconds, scale) {
    Object.assign(this, { seconds, scale });
    this.bar.style.left = `${(100 * start) / scale}%`;
    this.bar.style.width = `${(100 * seconds) / scale}%`;
    this.text.textContent = duration(seconds);
    this.handle.setAttribute("aria-label", `Length of ${name}`);
    this.handle.setAttribute("aria-valuenow", seconds);
    this.handle.setAttribute("aria-valuetext", duration(seconds));
  }

  #set(seconds) {
    const rounded = Math.max(SHORTEST, Math.min(LONGEST, Math.round(seconds / SHORTEST) * SHORTEST));
    if (rounded !== this.seconds) this.onlength(Number(trimmed(rounded, 1)));
  }

  #key(event) {
    const step = KEYS[event.key];
    if (step === undefined && event.key !== "Home") return;
    event.preventDefault();
    this.#set(event.key === "Home" ? SHORTEST : this.seconds + step * (event.shiftKey ? 4 : 1));
  }

  #drag(event) {
    event.preventDefault();
    this.handle.focus();
    this.handle.setPointerCapture(event.pointerId);
    this.dragging = true;
    const from = { x: event.clientX, seconds: this.seconds };
    const perPixel = this.scale / this.element.clientWidth; // of the line as it was when the drag began
    const move = moved => this.#set(from.seconds + (moved.clientX - from.x) * perPixel);
    const stop = () => {
      this.dragging = false;
      this.handle.removeEventListener("pointermove", move);
      this.onlength(this.seconds);
    };
    this.handle.addEventListener("pointermove", move);
    this.handle.addEventListener("lostpointercapture", stop, { once: true });
  }
}
