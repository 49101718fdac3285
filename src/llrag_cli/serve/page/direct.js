// Directing: "Now ..." while a video is made, "And then ..." once it is not; pause, resume, stop.

import { actionButton, attempt } from "./action.js";
import { api } from "./api.js";
import { field, h, uniqueId } from "./dom.js";
import { timecode } from "./format.js";
import { announce } from "./notices.js";
import { isForeign, isOpen, statusSentence } from "./video.js";

export class Direct {
  constructor(follower, info) {
    Object.assign(this, { follower, generates: info.generates });
    this.status = h("p", { class: "status" });
    this.progress = h("progress", { "aria-label": "Blocks generated" });
    this.pause = actionButton("Pause generation", () => this.#take(api.pause(this.id)), { class: "quiet" });
    this.resume = actionButton("Resume generation", () => this.#take(api.resume(this.id)), { class: "quiet" });
    this.stop = actionButton("Stop", () => this.#take(api.cancel(this.id)), {
      class: "quiet",
      title: "End the video here. What was generated is kept and can be extended",
    });
    this.foreign = h("p", { class: "dim" }, "Another process generates this video.");
    this.now = this.#nowForm();
    this.then = this.#thenForm();
    this.element = h(
      "section",
      { class: "panel direct", "aria-labelledby": "direct" },
      h("h2", { id: "direct" }, this.generates ? "Direct" : "Progress"),
      this.status,
      this.progress,
      h("div", { class: "row making", role: "group", "aria-label": "Generation" }, this.pause, this.resume, this.stop),
      this.foreign,
      this.now,
      this.then,
    );
    follower.addEventListener("change", () => this.show());
    this.show();
  }

  get id() {
    return this.follower.video.id;
  }

  #nowForm() {
    this.prompt = h("textarea", {
      rows: 2,
      maxlength: 20000,
      required: true,
      placeholder: "what the video shows from here on",
    });
    this.outcome = h("p", { class: "outcome", role: "status" });
    return this.#form(
      [field("Now ...", this.prompt, { className: "field main" })],
      [
        ["Switch", "The picture continues under the new prompt, from the next block on", false],
        ["Cut", "A new picture, from the next block on", true],
      ],
      cut => this.#switch(cut),
      this.prompt,
      this.outcome,
    );
  }

  #thenForm() {
    this.further = h("textarea", { rows: 2, maxlength: 20000, placeholder: "as before" });
    this.seconds = h("input", { type: "number", min: 0.5, max: 3600, step: 0.5, value: 10 });
    return this.#form(
      [
        field("And then ...", this.further, { className: "field main", hint: "Leave empty to keep the same prompt" }),
        field("Seconds", this.seconds, { className: "inline" }),
      ],
      [
        ["Extend", "The picture continues", false],
        ["Cut and extend", "A new picture", true],
      ],
      cut => this.#extend(cut),
      this.further,
      null,
    );
  }

  /** A form with a button for going on and one for a cut; Enter goes on, Shift and Enter begins a new line. */
  #form(fields, buttons, act, text, outcome) {
    const [first, second] = buttons.map(([name, title, cut]) =>
      h("button", { type: "submit", title, value: cut ? "cut" : "switch", class: cut ? "" : "primary" }, name),
    );
    const form = h("form", { id: uniqueId("direct") }, fields, h("div", { class: "row" }, first, second), outcome);
    form.addEventListener("submit", event => {
      event.preventDefault();
      const button = event.submitter ?? first;
      if (button.getAttribute("aria-disabled") !== "true") attempt(button, () => act(button.value === "cut"));
    });
    text.addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit(first);
    });
    return form;
  }

  async #switch(cut) {
    const { at_seconds: at } = await api.switchPrompt(this.id, this.prompt.value.trim(), cut);
    this.prompt.value = "";
    this.outcome.textContent = `${cut ? "Cut" : "Switch"} at ${timecode(at)}, with the next block.`;
  }

  async #extend(cut) {
    const { prompt, llrag } = this.follower.video;
    const request = {
      video: this.id,
      prompt: this.further.value.trim() || llrag.shots.at(-1)?.prompt || prompt,
      seconds: this.seconds.value,
      cut,
    };
    const video = await api.extend(request);
    if (location.hash === `#/video/${video.id}`)
      dispatchEvent(new Event("hashchange")); // the same video, longer
    else location.hash = `#/video/${video.id}`;
  }

  async #take(answer) {
    const video = await answer;
    if (video?.llrag) this.follower.update(video);
  }

  show() {
    const { video, fps } = this.follower;
    const open = isOpen(video);
    const { paused, status, block, blocks_total: blocks } = video.llrag;
    const text = statusSentence(video, fps);
    if (this.status.textContent !== text) this.status.textContent = text;
    this.progress.hidden = !open;
    Object.assign(this.progress, { max: blocks || 1, value: block });
    this.#swap(this.pause, this.resume, paused);
    for (const button of [this.pause, this.resume]) button.disabled = !open;
    const mine = this.generates && !isForeign(video);
    this.stop.parentElement.hidden = !open || !mine;
    this.now.hidden = !open || !mine;
    this.foreign.hidden = !isForeign(video);
    this.then.hidden = open || !block || !this.generates;
    for (const button of this.then.querySelectorAll("button")) button.disabled = !video.llrag.extendable; // its files may not be complete yet
    const state = `${status} ${paused}`;
    if (this.state !== undefined && state !== this.state) announce(text);
    this.state = state;
  }

  /** One button in the place of the other, and the focus with it. */
  #swap(pause, resume, paused) {
    const focused = [pause, resume].includes(document.activeElement);
    pause.hidden = paused;
    resume.hidden = !paused;
    if (focused) (paused ? resume : pause).focus();
  }
}
