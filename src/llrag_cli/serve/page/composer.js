// Writing a scene, and having it made.

import { actionButton } from "./action.js";
import { api } from "./api.js";
import { h } from "./dom.js";
import { Estimate } from "./estimate.js";
import { announce } from "./notices.js";
import { ReferencesEditor } from "./references-editor.js";
import { newScene, requestOf } from "./scene.js";
import { SettingsEditor } from "./settings-editor.js";
import { ShotsEditor } from "./shots-editor.js";
import { Uploads } from "./uploads.js";
import { YamlEditor } from "./yaml-editor.js";

const format = async scene => (await api.formatScene(scene)).yaml;

/** Where to go for a video that was just created. */
export function addressOf(video) {
  const group = video.llrag.compare_of ?? video.llrag.take_of;
  return group ? `#/group/${group}` : `#/video/${video.id}`;
}

export class Composer {
  constructor(draft, info) {
    this.draft = draft;
    this.info = info;
    this.uploads = new Uploads();
    this.references = new ReferencesEditor(draft, this.uploads);
    this.shots = new ShotsEditor(draft, this.uploads, (files, index) => this.references.take(files, index));
    this.yaml = new YamlEditor(draft);
    this.estimate = new Estimate({
      onreadings: readings => this.shots.showReadings(readings),
      onfits: fits => this.#allow(fits),
    });
    this.settings = new SettingsEditor(draft, info, () => this.#changed());
    this.make = actionButton("Generate", () => this.#create({}), { class: "primary" });
    this.compare = actionButton("Compare native and retrieval", () => this.#create({ compare: true }));
    this.element = h(
      "section",
      { class: "composer panel", "aria-labelledby": "write" },
      this.#head(),
      this.#body(),
      this.#foot(),
    );
    draft.subscribe(() => this.#changed());
    this.#changed();
    this.uploads.load();
  }

  close() {
    this.closed = true;
    this.estimate.close();
  }

  #head() {
    const file = h(
      "button",
      { type: "button", class: "quiet", "aria-expanded": "false", onclick: () => this.#toggleFile(file) },
      "Scene file",
    );
    this.file = file;
    const example = actionButton("Open the example", () => this.#example(), { class: "quiet" });
    const anew = h("button", { type: "button", class: "quiet", onclick: () => this.#anew() }, "New scene");
    return h(
      "div",
      { class: "panel-head" },
      h("h1", { id: "write", tabindex: "-1" }, "Write a scene"),
      h("div", { class: "row" }, example, anew, file),
    );
  }

  #body() {
    this.yaml.shown = false;
    return h(
      "div",
      { class: "composer-body" },
      h("div", { class: "rows" }, this.shots.element, this.references.element),
      this.yaml.element,
    );
  }

  #foot() {
    return h(
      "div",
      { class: "composer-foot" },
      this.settings.element,
      this.estimate.element,
      h("div", { class: "row" }, this.make, this.compare),
    );
  }

  #toggleFile(button) {
    const shown = !this.yaml.open;
    this.yaml.shown = shown;
    button.setAttribute("aria-expanded", String(shown));
    this.element.classList.toggle("with-yaml", shown);
  }

  async #example() {
    const { scene } = await api.parseScene(this.info.scene_example);
    const offered = this.info.models.some(({ id }) => id === scene.backbone);
    this.draft.change(offered ? scene : { ...scene, backbone: this.info.default_model });
    announce("The example scene was opened");
  }

  #anew() {
    this.draft.change(newScene(this.info.default_model, defaultSeconds(this.info)));
    this.shots.rows[0].prompt.focus();
  }

  get complete() {
    return this.draft.scene.shots.every(shot => shot.prompt.trim());
  }

  #changed() {
    if (this.closed) return; // another one shows the draft now
    this.#allow(this.complete);
    this.estimate.ask(async () => (this.complete ? requestOf(this.draft.scene, this.settings.extra, format) : null));
  }

  #allow(allowed) {
    for (const button of [this.make, this.compare]) button.disabled = !(allowed && this.complete);
  }

  async #create(extra) {
    const video = await api.create(await requestOf(this.draft.scene, { ...this.settings.extra, ...extra }, format));
    location.hash = addressOf(video);
  }
}

export function defaultSeconds(info) {
  return info.models.find(({ id }) => id === info.default_model)?.default_seconds ?? 10;
}
