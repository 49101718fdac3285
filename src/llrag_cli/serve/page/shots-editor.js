// The shots as rows on one time line.

import { h, uniqueId } from "./dom.js";
import { duration } from "./format.js";
import { addShot, totalSeconds } from "./scene.js";
import { ShotRow } from "./shot-row.js";

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

/** Seconds between the marks of a line, so that it has at most eight of them. */
export function markStep(seconds) {
  return STEPS.find(step => seconds / step <= 8) ?? Math.ceil(seconds / 8 / 3600) * 3600;
}

export class ShotsEditor {
  constructor(draft, uploads, drop) {
    this.draft = draft;
    this.uploads = uploads;
    this.drop = drop;
    this.rows = [];
    this.scale = 0;
    this.list = h("ol", { class: "shots", id: uniqueId("shots") });
    this.ruler = h("div", { class: "ruler", "aria-hidden": "true" });
    const add = h("button", { type: "button", class: "quiet", onclick: () => this.#add() }, "Add a shot");
    this.element = h("div", { class: "shots-editor" }, this.ruler, this.list, h("p", { class: "row" }, add));
    draft.subscribe(() => this.show());
    this.show();
  }

  #add() {
    this.draft.change(addShot(this.draft.scene));
    this.rows.at(-1).prompt.focus();
  }

  show() {
    const scene = this.draft.scene;
    while (this.rows.length < scene.shots.length) {
      const row = new ShotRow(this.uploads, next => this.draft.change(next, this), this.drop);
      this.rows.push(row);
      this.list.append(row.element);
    }
    while (this.rows.length > scene.shots.length) this.rows.pop().element.remove();
    if (!this.rows.some(row => row.bar.dragging)) this.#rescale(totalSeconds(scene));
    let start = 0;
    for (const [index, row] of this.rows.entries()) {
      row.show(scene, index, start, this.scale);
      start += scene.shots[index].seconds;
    }
  }

  /** Leave room at the end of the line to drag into. */
  #rescale(seconds) {
    const step = markStep(seconds * 1.3);
    this.scale = Math.ceil((seconds * 1.3) / step) * step;
    const marks = [];
    for (let second = 0; second < this.scale; second += step) {
      const mark = h("span", {}, second ? duration(second) : "0");
      mark.style.left = `${(100 * second) / this.scale}%`;
      marks.push(mark);
    }
    this.ruler.replaceChildren(h("div", {}, marks));
  }

  /** Readings of the prompts, in the order of the shots. */
  showReadings(readings) {
    for (const [index, row] of this.rows.entries())
      row.reading.show(row.prompt.value.trim() ? readings?.[index] : null);
  }
}
