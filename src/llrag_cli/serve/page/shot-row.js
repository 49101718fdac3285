// One shot: how it begins, its prompt, its length on the time line, and what it may remember.

import { Choice } from "./choice.js";
import { h, uniqueId } from "./dom.js";
import { filesOf, holdsFiles } from "./files.js";
import { Reading } from "./reading.js";
import { Remember } from "./remember.js";
import { movedShot, nameOf, withChange, withoutShot, withShot } from "./scene.js";
import { ShotBar } from "./shot-bar.js";
import { ShotMore } from "./shot-more.js";

const CHANGES = [
  ["switch", "Switch", "A new prompt; the picture continues"],
  ["cut", "Cut", "A new picture"],
];

export class ShotRow {
  /** `change(scene)` takes in a new scene; `drop(files, index)` files that were dropped on the row. */
  constructor(uploads, change, drop) {
    this.change = change;
    this.prompt = h("textarea", {
      id: uniqueId("prompt"),
      rows: 2,
      maxlength: 20000,
      oninput: () => change(withShot(this.scene, this.index, { prompt: this.prompt.value })),
    });
    this.label = h("label", { for: this.prompt.id });
    this.reading = new Reading();
    this.prompt.setAttribute("aria-describedby", this.reading.element.id);
    this.begins = new Choice("How the shot begins", CHANGES, value =>
      change(withChange(this.scene, this.index, value === "cut")),
    );
    this.bar = new ShotBar(seconds => change(withShot(this.scene, this.index, { seconds })));
    this.remember = new Remember(change);
    this.more = new ShotMore(uploads, change);
    this.up = this.#tool("Move up", "↑", () => change(movedShot(this.scene, this.index, -1)));
    this.down = this.#tool("Move down", "↓", () => change(movedShot(this.scene, this.index, 1)));
    this.away = this.#tool("Remove", "✕", () => change(withoutShot(this.scene, this.index)));
    this.tools = h("div", { class: "tools" }, this.up, this.down, this.away);
    this.element = h(
      "li",
      {
        class: "shot",
        ondragover: event => holdsFiles(event) && (event.preventDefault(), this.element.classList.add("over")),
        ondragleave: () => this.element.classList.remove("over"),
        ondrop: event => {
          if (!holdsFiles(event)) return;
          event.preventDefault();
          event.stopPropagation();
          this.element.classList.remove("over");
          drop(filesOf(event), this.index);
        },
      },
      h("div", { class: "shot-head" }, this.label, this.begins.element, this.tools),
      h("div", { class: "shot-words" }, this.prompt, this.reading.element, this.remember.element),
      this.bar.element,
      this.more.element,
    );
  }

  #tool(name, sign, action) {
    return h(
      "button",
      { type: "button", class: "tool", title: name, "data-name": name, onclick: action },
      h("span", { "aria-hidden": "true" }, sign),
    );
  }

  /** Bring the row up to date; the shot begins at `start` seconds of a line of `scale` seconds. */
  show(scene, index, start, scale) {
    Object.assign(this, { scene, index });
    const shot = scene.shots[index];
    const name = nameOf(scene, index);
    const several = scene.shots.length > 1;
    this.label.textContent = several ? shot.name || `Shot ${index + 1}` : "What the video shows";
    if (this.prompt.value !== shot.prompt) this.prompt.value = shot.prompt;
    this.begins.element.hidden = index === 0;
    this.begins.value = shot.cut ? "cut" : "switch";
    this.element.classList.toggle("cut", Boolean(shot.cut) && index > 0);
    this.bar.show(name, start, shot.seconds, scale);
    this.remember.show(scene, index);
    this.more.show(scene, index, name);
    this.tools.hidden = !several;
    this.up.disabled = index === 0;
    this.down.disabled = index === scene.shots.length - 1;
    for (const tool of this.tools.children) tool.setAttribute("aria-label", `${tool.dataset.name} ${name}`);
  }
}
