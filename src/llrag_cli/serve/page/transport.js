// Play, pause, the newest picture, the time, full screen.

import { h } from "./dom.js";
import { timecode } from "./format.js";

export class Transport {
  /** `total()` is the length of the video in seconds, `open()` whether it is still being made. */
  constructor(together, { total, open, screen }) {
    Object.assign(this, { together, total, open });
    this.play = h("button", { type: "button", class: "play", onclick: () => together.toggle() });
    this.newest = h(
      "button",
      {
        type: "button",
        class: "quiet newest",
        title: "Keep the play head at the newest picture",
        onclick: () => together.follow(!together.newest),
      },
      "Newest",
    );
    this.time = h("span", { class: "timecode" });
    const full = h(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: () => (document.fullscreenElement ? document.exitFullscreen() : screen.requestFullscreen()),
      },
      "Full screen",
    );
    this.element = h(
      "div",
      { class: "transport", role: "group", "aria-label": "Playback" },
      this.play,
      this.time,
      h("span", { class: "space" }),
      this.newest,
      document.fullscreenEnabled ? full : null,
    );
    together.addEventListener("tick", () => this.show());
    together.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { playing, newest, time, edge } = this.together;
    const text = `${timecode(time)} / ${timecode(this.total())}`;
    if (this.time.textContent !== text) this.time.textContent = text;
    const name = playing ? "Pause" : "Play";
    if (this.play.textContent !== name) this.play.textContent = name;
    this.play.disabled = !edge;
    this.newest.hidden = !this.open();
    this.newest.setAttribute("aria-pressed", String(newest));
  }
}
