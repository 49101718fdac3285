// A choice of few, all of them visible: radio buttons in a row.

import { h, uniqueId } from "./dom.js";

export class Choice {
  /** `options` are [value, text, description]; `onchange(value)` is called when the person chooses. */
  constructor(legend, options, onchange) {
    const name = uniqueId("choice");
    this.inputs = options.map(([value]) => h("input", { type: "radio", name, value, onchange: () => onchange(value) }));
    const labels = options.map(([, text, description], index) =>
      h("label", { title: description }, this.inputs[index], h("span", {}, text)),
    );
    this.element = h("fieldset", { class: "choice" }, h("legend", { class: "visually-hidden" }, legend), labels);
  }

  set value(value) {
    for (const input of this.inputs) input.checked = input.value === value;
  }
}
