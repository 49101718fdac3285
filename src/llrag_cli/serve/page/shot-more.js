// What most shots leave as it is: name, seed, opening, and what stays attended at a cut or is encoded again at a switch.

import { field, h, select } from "./dom.js";
import { Opening } from "./opening.js";
import { freeName, renamedShot, withShot } from "./scene.js";

const SINK = [
  ["", "if it may be retrieved"],
  ["keep", "kept"],
  ["drop", "dropped"],
];
const RECACHE = [
  ["", "as the model"],
  ["keep", "the window, and the sink is kept"],
  ["renew", "the window and the sink"],
  ["none", "nothing"],
];
const WHOLE = /^\d{1,18}$/;

export class ShotMore {
  /** `change(scene)` takes in a new scene. */
  constructor(uploads, change) {
    const set = changes => change(withShot(this.scene, this.index, changes));
    this.opening = new Opening(uploads, change);
    this.name = h("input", { type: "text", maxlength: 64, onchange: () => this.#rename(change) });
    this.seed = h("input", {
      type: "text",
      inputmode: "numeric",
      placeholder: "of the scene",
      oninput: () => this.#number(set),
    });
    this.sink = select(SINK, "", sink => set({ sink }));
    this.recache = select(RECACHE, "", recache => set({ recache }));
    this.sinkField = field("Sink frames at the cut", this.sink);
    this.recacheField = field("Encoded again at the switch", this.recache);
    this.summary = h("summary", {}, "More");
    this.element = h(
      "details",
      { class: "shot-more" },
      this.summary,
      this.opening.element,
      h("div", { class: "fields" }, field("Name", this.name), field("Noise seed of the shot", this.seed), this.sinkField, this.recacheField),
    );
  }

  show(scene, index, name) {
    Object.assign(this, { scene, index });
    const shot = scene.shots[index];
    this.opening.show(scene, index, name);
    this.sinkField.hidden = !index || !shot.cut;
    this.recacheField.hidden = !index || Boolean(shot.cut);
    for (const key of ["name", "seed", "sink", "recache"])
      if (this[key] !== document.activeElement) this[key].value = shot[key] ?? "";
    const given = ["name", "seed", "sink", "recache", "image", "video"].filter(key => shot[key] !== undefined).length;
    this.summary.textContent = given ? `More (${given})` : "More";
    this.summary.setAttribute("aria-label", `${this.summary.textContent} of ${name}`);
  }

  #rename(change) {
    const shot = this.scene.shots[this.index];
    const wanted = this.name.value.trim();
    const rest = { ...this.scene, shots: this.scene.shots.filter(each => each !== shot) };
    change(renamedShot(this.scene, this.index, wanted && wanted !== shot.name ? freeName(rest, `${wanted}.`) : wanted));
  }

  #number(set) {
    const text = this.seed.value.trim();
    const valid = !text || WHOLE.test(text);
    this.seed.setAttribute("aria-invalid", String(!valid));
    if (valid) set({ seed: text ? Number(text) : undefined });
  }
}
