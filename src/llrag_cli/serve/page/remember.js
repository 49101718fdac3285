// What a shot may remember: everything before it, nothing, or chosen shots and references.

import { field, h, select } from "./dom.js";
import { nameOf, rememberable, withShot } from "./scene.js";

/** The control for one shot; `show(scene, index)` brings it up to date. */
export class Remember {
  constructor(onchange) {
    this.onchange = onchange;
    this.kind = select(
      [
        ["all", "everything"],
        ["none", "nothing"],
        ["names", "only ..."],
      ],
      "all",
      kind => this.#choose(kind),
    );
    this.names = h("div", { class: "checks", role: "group", "aria-label": "Shots and references to remember" });
    this.element = h("div", { class: "remember" }, field("Remembers", this.kind, { className: "inline" }), this.names);
  }

  show(scene, index) {
    Object.assign(this, { scene, index });
    const names = rememberable(scene, index);
    const remember = scene.shots[index].remember ?? "all";
    this.element.hidden = !names.length;
    this.kind.value = Array.isArray(remember) ? "names" : remember;
    this.kind.setAttribute("aria-label", `${nameOf(scene, index)} remembers`);
    this.names.hidden = !Array.isArray(remember);
    if (this.names.hidden) return;
    const focused = document.activeElement?.value;
    const within = this.names.contains(document.activeElement);
    this.names.replaceChildren(...names.map(name => this.#check(name, remember.includes(name))));
    if (within) [...this.names.querySelectorAll("input")].find(input => input.value === focused)?.focus();
  }

  #check(name, checked) {
    const input = h("input", {
      type: "checkbox",
      value: name,
      checked,
      onchange: () => this.#toggle(name, input.checked),
    });
    return h("label", {}, input, name);
  }

  #toggle(name, on) {
    const before = this.scene.shots[this.index].remember;
    const chosen = rememberable(this.scene, this.index).filter(each => (each === name ? on : before.includes(each)));
    this.#set(chosen.length ? chosen : "none");
  }

  #choose(kind) {
    this.#set(kind === "names" ? rememberable(this.scene, this.index).slice(0, 1) : kind);
  }

  #set(remember) {
    this.onchange(withShot(this.scene, this.index, { remember }));
  }
}
