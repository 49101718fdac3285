// What a video was made with, and its shots as a list.

import { h } from "./dom.js";
import { bytes, timecode } from "./format.js";
import { memoryName } from "./video.js";

export class Facts {
  constructor(follower, together) {
    Object.assign(this, { follower, together });
    this.shots = h("ol", { class: "shot-list" });
    this.facts = h("dl", { class: "facts" });
    this.element = h(
      "section",
      { class: "panel", "aria-labelledby": "facts" },
      h("h2", { id: "facts" }, "Shots"),
      this.shots,
      this.facts,
    );
    follower.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { video } = this.follower;
    const { seed, width, height, fps, decoder, size_bytes: size, shots, run } = video.llrag;
    const facts = [
      ["Model", video.model],
      ["Memory", memoryName(video)],
      ["Seed", seed],
      ["Picture", `${width} x ${height}, ${fps} fps`],
      ["Decoder", decoder],
      ["File", size ? bytes(size) : null],
      ["Run", run],
    ];
    const text = JSON.stringify([shots, facts]);
    if (text === this.text) return;
    this.text = text;
    const focused = [...this.shots.querySelectorAll("button")].indexOf(document.activeElement);
    this.shots.replaceChildren(...shots.map((shot, index) => this.#shot(shot, index)));
    this.shots.querySelectorAll("button")[focused]?.focus();
    this.facts.replaceChildren(
      ...facts
        .filter(([, value]) => value !== null && value !== undefined)
        .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))),
    );
  }

  #shot({ start, prompt, change }, index) {
    const kind = index ? { cut: "Cut", switch: "Switch" }[change] : "Start";
    return h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "link timecode",
          onclick: () => this.together.seek(start),
          "aria-label": `Go to ${timecode(start)}`,
        },
        timecode(start),
      ),
      h("span", {}, h("b", { class: change }, kind), ` ${prompt}`),
    );
  }
}
