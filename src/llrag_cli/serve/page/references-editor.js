// Pictures, clips and finished runs that the scene remembers: dropped in, named, removed.

import { ApiError, api, links } from "./api.js";
import { h } from "./dom.js";
import { filesOf, holdsFiles, mediaOf } from "./files.js";
import { announce, complain } from "./notices.js";
import { freeName, renamedReference, withoutReference, withReference, withShot } from "./scene.js";

export class ReferencesEditor {
  constructor(draft) {
    this.draft = draft;
    this.previews = new Map(); // id of a reference -> address of its picture in this browser
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
    );
    this.element = h("section", { class: "references-editor", "aria-label": "References" }, this.list, this.zone);
    draft.subscribe(() => this.show());
    this.show();
  }

  /** Upload files as references; a shot given by `index` remembers them besides what it names already. */
  async take(files, index) {
    const media = mediaOf(files);
    if (media.length < files.length) complain(new ApiError("Only pictures and clips can be references"));
    for (const file of media) {
      const name = freeName(this.draft.scene, file.name);
      this.zone.classList.add("busy");
      try {
        const { id } = await api.upload(name, file);
        if (file.type.startsWith("image/")) this.previews.set(id, URL.createObjectURL(file));
        this.add(name, id, index);
        announce(`${name} is now a reference`);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        complain(error);
      } finally {
        this.zone.classList.remove("busy");
      }
    }
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
    return h("img", {
      src: this.previews.get(id) ?? (id.startsWith("char_") ? links.character(id) : links.thumbnail(id)),
      alt: "",
    });
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
