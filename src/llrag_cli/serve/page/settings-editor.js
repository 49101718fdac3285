// How a scene is made: model, memory, seed, takes, size, decoder.

import { field, h, select } from "./dom.js";
import { linesOf, settingsOf } from "./model-settings.js";
import { withKeys } from "./scene.js";

const WHOLE = /^\d{1,18}$/;

export class SettingsEditor {
  /** `onextra()` is called when a setting changes that is no key of a scene (size, decoder): see `extra`. */
  constructor(draft, info, onextra) {
    Object.assign(this, { draft, info });
    this.extra = { size: "", decoder: "" };
    const set = changes => draft.change(withKeys(draft.scene, changes), this);
    const extra = changes => {
      Object.assign(this.extra, changes);
      onextra();
    };
    this.model = select(
      info.models.map(({ id, bundled }) => [id, bundled ? `${id} (included)` : id]),
      "",
      backbone => set({ backbone }),
    );
    const strategies = info.strategies.filter(name => name !== "none").map(name => [name, `retrieval: ${name}`]);
    this.memory = select([["", "retrieval"], ["none", "native, without retrieval"], ...strategies], "", memory =>
      set({ memory }),
    );
    this.seed = h("input", {
      type: "text",
      inputmode: "numeric",
      pattern: "[0-9]*",
      placeholder: "random",
      oninput: () => this.#number(this.seed, "seed", set),
    });
    this.takes = h("input", {
      type: "number",
      min: 1,
      max: info.limits.takes,
      placeholder: "1",
      oninput: () => this.#number(this.takes, "takes", set),
    });
    this.size = h("input", {
      type: "text",
      placeholder: "as the model",
      pattern: "[0-9]+x[0-9]+",
      oninput: () => this.size.validity.valid && extra({ size: this.size.value }),
    });
    this.decoder = select(
      [
        ["", "full"],
        ["tiny", "tiny: a fast preview"],
      ],
      "",
      decoder => extra({ decoder }),
    );
    this.style = h("input", {
      type: "text",
      maxlength: 20000,
      placeholder: "35mm, soft morning light",
      oninput: () => set({ style: this.style.value }),
    });
    this.title = h("input", { type: "text", maxlength: 200, oninput: () => set({ title: this.title.value }) });
    this.set = h("textarea", { rows: 2, class: "code", spellcheck: "false", oninput: () => this.#settings(set) });
    this.vocabulary = h("ul");
    this.draws = h("details", { class: "vocabulary" }, h("summary", {}, "What this model can draw"), this.vocabulary);
    this.element = h(
      "section",
      { class: "settings", "aria-label": "Settings" },
      h(
        "div",
        { class: "fields" },
        field("Model", this.model),
        field("Memory", this.memory),
        field("Takes", this.takes),
        field("Seed", this.seed),
      ),
      h(
        "details",
        {},
        h("summary", {}, "More settings"),
        h(
          "div",
          { class: "fields" },
          field("Title", this.title),
          field("Style", this.style, { hint: "Put before every prompt" }),
          field("Size", this.size, { hint: "Width x height in pixels" }),
          field("Decoder", this.decoder),
        ),
        field("Settings of the model", this.set, { hint: "A line for each, as memory.retrieved: 6 or sampler.shift: 5" }),
      ),
      this.draws,
    );
    draft.subscribe((_, source) => source !== this && this.show());
    draft.subscribe(() => this.#models());
    this.show();
    this.#models();
  }

  #number(input, key, set) {
    const text = input.value.trim();
    const valid = !text || WHOLE.test(text);
    input.setAttribute("aria-invalid", String(!valid));
    if (valid) set({ [key]: text ? Number(text) : undefined });
  }

  #settings(set) {
    const { set: settings, problem } = settingsOf(this.set.value);
    this.set.setAttribute("aria-invalid", String(Boolean(problem)));
    if (!problem) set({ set: settings });
  }

  show() {
    this.set.value = linesOf(this.draft.scene.set).join("\n");
    const { backbone, memory = "", seed = "", takes = "", style = "", title = "" } = this.draft.scene;
    Object.assign(this.seed, { value: seed });
    Object.assign(this.takes, { value: takes });
    Object.assign(this.style, { value: style });
    Object.assign(this.title, { value: title });
    this.memory.value = memory;
    const model = backbone ?? this.info.default_model;
    if (![...this.model.options].some(option => option.value === model)) this.model.append(new Option(model, model)); // a file of the person
    this.model.value = model;
  }

  #models() {
    const model = this.info.models.find(({ id }) => id === (this.draft.scene.backbone ?? this.info.default_model));
    const lines = model?.vocabulary ?? [];
    this.draws.hidden = !lines.length;
    if (lines !== this.lines) this.vocabulary.replaceChildren(...lines.map(line => h("li", {}, line)));
    this.lines = lines;
  }
}
