// The scene as a file, beside the rows. Each follows the other; the server reads and writes the YAML.

import { ApiError, api } from "./api.js";
import { debounced, h } from "./dom.js";
import { sentence } from "./notices.js";

export class YamlEditor {
  constructor(draft) {
    this.draft = draft;
    this.problem = h("p", { class: "bad", role: "alert", id: "yaml-problem" });
    this.text = h("textarea", {
      id: "yaml",
      class: "code",
      spellcheck: "false",
      rows: 16,
      "aria-describedby": "yaml-problem",
      oninput: debounced(() => this.#read(), 350),
    });
    this.element = h(
      "section",
      { class: "yaml", "aria-label": "Scene file" },
      h("label", { for: "yaml" }, "Scene file"),
      this.text,
      this.problem,
      h("p", { class: "dim" }, "Comments are lost when the rows are changed."),
    );
    const write = debounced(() => this.#write(), 200);
    draft.subscribe((_, source) => source !== this && this.open && write());
  }

  /** Show or hide the file. */
  set shown(shown) {
    this.open = shown;
    this.element.hidden = !shown;
    if (shown) this.#write();
  }

  async #write() {
    const scene = this.draft.scene;
    try {
      const { yaml } = await api.formatScene(scene);
      if (scene !== this.draft.scene) return;
      this.text.value = yaml;
      this.#complain(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#complain(error);
    }
  }

  async #read() {
    const yaml = this.text.value;
    try {
      const { scene, problem } = await api.parseScene(yaml);
      if (yaml !== this.text.value) return;
      this.#complain(problem ?? null);
      if (scene) this.draft.change(scene, this);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (yaml === this.text.value) this.#complain(error);
    }
  }

  /** Show what is wrong {message, hint, line}, or nothing. */
  #complain(problem) {
    const place = problem?.line ? `Line ${problem.line}: ` : "";
    this.problem.textContent = problem ? `${place}${sentence(problem.message)} ${sentence(problem.hint ?? "")}` : "";
    this.text.setAttribute("aria-invalid", String(Boolean(problem)));
  }
}
