// What a model makes of a prompt: what it understood, ignored, and cannot draw.

import { h, uniqueId } from "./dom.js";

const PARTS = [
  ["cannot_draw", "Cannot draw", "bad"],
  ["ignored", "Ignored", "warn"],
  ["understood", "Understood", "good"],
];

export class Reading {
  constructor() {
    this.element = h("p", { class: "reading", id: uniqueId("reading") });
  }

  /** Show a reading {understood, ignored, cannot_draw}, or nothing. */
  show(reading) {
    const parts = PARTS.filter(([key]) => reading?.[key]?.length);
    this.element.replaceChildren(
      ...parts.map(([key, name, className]) =>
        h("span", { class: className }, h("b", {}, `${name}: `), reading[key].join(", "), " "),
      ),
    );
  }
}
