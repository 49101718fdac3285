// The picture or clip that opens a shot.

import { h, uniqueId } from "./dom.js";
import { withOpening } from "./scene.js";
import { uploadChoice } from "./uploads.js";

export class Opening {
  /** `onchange(scene)` takes in a new scene. */
  constructor(uploads, onchange) {
    Object.assign(this, { uploads, onchange });
    const file = h("input", { type: "file", accept: "image/*,video/*", class: "visually-hidden", id: uniqueId("file") });
    file.addEventListener("change", async () => {
      const files = [...file.files];
      file.value = "";
      await uploads.send(files, upload => this.#choose(upload));
    });
    this.name = h("span", { class: "dim" });
    this.picture = h("img", { alt: "" });
    this.away = h("button", { type: "button", class: "tool", onclick: () => this.#choose(null) }, "✕");
    this.choice = uploadChoice(uploads, "Earlier uploads", upload => this.#choose(upload));
    this.element = h(
      "div",
      { class: "opening", role: "group" },
      h("span", {}, "Opens with"),
      this.picture,
      this.name,
      this.away,
      h("span", { class: "file" }, file, h("label", { for: file.id, class: "button quiet" }, "Choose a file")),
      this.choice,
    );
    this.file = file;
    uploads.addEventListener("change", () => this.scene && this.#show());
  }

  show(scene, index, name) {
    Object.assign(this, { scene, index });
    this.element.hidden = index > 0 && !scene.shots[index].cut;
    this.element.setAttribute("aria-label", `What ${name} opens with`);
    this.file.setAttribute("aria-label", `File that ${name} opens with`);
    this.away.setAttribute("aria-label", `Open ${name} with nothing`);
    this.#show();
  }

  #show() {
    const id = openingOf(this.scene, this.index);
    this.picture.hidden = this.away.hidden = !id;
    if (id && this.picture.getAttribute("src") !== this.uploads.picture(id)) this.picture.src = this.uploads.picture(id);
    this.name.textContent = id ? (this.uploads.named(id)?.name ?? id) : "a new picture";
  }

  #choose(upload) {
    this.onchange(withOpening(this.scene, this.index, upload));
  }
}

/** The id of what opens a shot; that of the first may stand at the scene. */
function openingOf(scene, index) {
  const { image, video } = scene.shots[index];
  return image ?? video ?? (index ? undefined : (scene.image ?? scene.video));
}
