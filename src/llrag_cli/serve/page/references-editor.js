// Pictures, clips and finished runs that the scene remembers: dropped in, named, removed.

import { h } from "./dom.js";
import { filesOf, holdsFiles } from "./files.js";
import { freeName, renamedReference, withoutReference, withReference, withShot } from "./scene.js";
import { uploadChoice } from "./uploads.js";

export class ReferencesEditor {
  constructor(draft, uploads) {
    Object.assign(this, { draft, uploads });
    this.list = h("ul", { class: "references" });
    this.input = h("input", {
      type: "file",
      accept: "image/*,video/*",
      multiple: true,
      class: "visually-hidden",
      id: "reference-files",
    });
    this.input.addEventListener("change", () => {
      this.take([...this.input.files]);
      this.input.value = "";
    });
    this.zone = h(
      "div",
      {
        class: "drop",
        ondragover: event => holdsFiles(event) && (event.preventDefault(), this.zone.classList.add("over")),
        ondragleave: () => this.zone.classList.remove("over"),
        ondrop: event => {
          event.preventDefault();
          this.zone.classList.remove("over");
          this.take(filesOf(event));
        },
      },
      this.input,
      h("label", { for: this.input.id, class: "button quiet" }, "Choose files"),
      h("span", {}, "or drop pictures and clips here, or on a shot that should remember them"),
      uploadChoice(uploads, "Earlier uploads", upload => this.#add(upload)),
    );
    this.element = h("section", { class: "references-editor", "aria-label": "References" }, this.list, this.zone);
    draft.subscribe(() => this.show());
    this.show();
  }

  /** Upload files as references; a shot given by `index` remembers them besides what it names already. */
  async take(files, index) {
    this.zone.classList.add("busy");
    try {
      await this.uploads.send(files, upload => this.#add(upload, index));
    } finally {
      this.zone.classList.remove("busy");
    }
  }

  #add({ id, name }, index) {
    this.add(freeName(this.draft.scene, `${name}.`), id, index);
  }

  /** Add a reference by its id. */
  add(name, id, index) {
    let scene = withReference(this.draft.scene, name, { path: id });
    if (index !== undefined && scene.shots[index].remember !== undefined) {
      const before = scene.shots[index].remember;
      scene = withShot(scene, index, { remember: [...(Array.isArray(before) ? before : []), name] });
    }
    this.draft.change(scene);
  }

  show() {
    const entries = Object.entries(this.draft.scene.references ?? {});
    const shown = JSON.stringify(entries);
    if (shown === this.shown) return;
    this.shown = shown;
    this.list.replaceChildren(...entries.map(([name, reference]) => this.#item(name, reference)));
    this.list.hidden = !entries.length;
  }

  #item(name, value) {
    const reference = typeof value === "string" ? { path: value } : value;
    const title = h("input", {
      type: "text",
      value: name,
      "aria-label": "Name of the reference",
      maxlength: 64,
      onchange: () => this.#rename(name, title),
    });
    const pinned = h("input", {
      type: "checkbox",
      checked: Boolean(reference.pinned),
      onchange: () =>
        this.draft.change(withReference(this.draft.scene, name, { ...reference, pinned: pinned.checked })),
    });
    return h(
      "li",
      {},
      this.#picture(reference.path),
      h(
        "div",
        {},
        title,
        h(
          "label",
          { title: "Pinned: every block attends to it, not only those that retrieve it" },
          pinned,
          "always attended",
        ),
      ),
      h(
        "button",
        {
          type: "button",
          class: "tool",
          "aria-label": `Remove ${name}`,
          onclick: () => this.draft.change(withoutReference(this.draft.scene, name)),
        },
        h("span", { "aria-hidden": "true" }, "✕"),
      ),
    );
  }

  #picture(id) {
    return h("img", { src: this.uploads.picture(id), alt: "" });
  }

  #rename(name, input) {
    const wanted = input.value.trim();
    if (!wanted || wanted === name) {
      input.value = name;
      return;
    }
    const { [name]: _, ...others } = this.draft.scene.references;
    this.draft.change(
      renamedReference(this.draft.scene, name, freeName({ ...this.draft.scene, references: others }, wanted)),
    );
  }
}
