// The library: every run in the runs folder, newest first.

import { actionButton } from "./action.js";
import { ApiError, api, links } from "./api.js";
import { h } from "./dom.js";
import { plural, timecode, when } from "./format.js";
import { announce } from "./notices.js";
import { freeNameOf, hasPicture, isOpen, isTiny, memoryName, statusName, titleOf } from "./video.js";

const [OFTEN, SELDOM] = [3000, 15000]; // milliseconds between looks, while something is generated and otherwise

export class Library {
  /** `onreference(name, id)` is called to remember a video in the scene that is being written; `heading` is h1 or h2. */
  constructor(info, { onreference, heading }) {
    Object.assign(this, { info, onreference, below: heading === "h1" ? "h2" : "h3" });
    this.cards = new Map(); // id -> {text of what is shown, element}
    this.heading = h(heading, { id: "library", tabindex: "-1" }, "Library");
    this.count = h("span", { class: "dim" });
    this.list = h("ul", { class: "cards", "aria-busy": "true" });
    this.empty = h("p", { class: "empty" }, "Loading the library");
    this.element = h(
      "section",
      { class: "library", "aria-labelledby": "library" },
      h("div", { class: "panel-head" }, this.heading, this.count),
      this.empty,
      this.list,
    );
    this.#refresh();
  }

  close() {
    clearTimeout(this.timer);
    this.closed = true;
  }

  async #refresh() {
    clearTimeout(this.timer);
    try {
      if (!document.hidden) this.#show((await api.library()).data);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.empty.hidden = false;
      this.empty.textContent = "The library cannot be read at the moment.";
    }
    if (!this.closed) this.timer = setTimeout(() => this.#refresh(), this.busy ? OFTEN : SELDOM);
  }

  #show(videos) {
    this.busy = videos.some(isOpen);
    this.list.setAttribute("aria-busy", "false");
    this.empty.hidden = videos.length > 0;
    this.empty.textContent =
      "No videos yet. Videos made in the studio or on the command line, in the same runs folder, appear here.";
    this.count.textContent = videos.length ? plural(videos.length, "video") : "";
    const shown = new Set(videos.map(({ id }) => id));
    for (const [id, card] of this.cards) {
      if (shown.has(id)) continue;
      card.element.remove();
      this.cards.delete(id);
    }
    for (const [index, video] of videos.entries()) {
      const element = this.#card(video);
      if (this.list.children[index] !== element) this.list.insertBefore(element, this.list.children[index] ?? null);
    }
  }

  /** The card of a video, built again only where what it shows has changed, so that focus stays. */
  #card(video) {
    const text = JSON.stringify(video);
    const before = this.cards.get(video.id);
    if (before?.text === text) return before.element;
    const element = h("li", { class: "card" }, this.#picture(video), this.#words(video), this.#actions(video));
    if (before) {
      const focused = before.element.contains(document.activeElement)
        ? document.activeElement.dataset.action
        : undefined;
      const open = before.element.querySelector("details")?.open;
      before.element.replaceWith(element);
      element.querySelector("details")?.toggleAttribute("open", Boolean(open));
      if (focused) element.querySelector(`[data-action="${focused}"]`)?.focus();
    }
    this.cards.set(video.id, { text, element });
    return element;
  }

  #picture(video) {
    const { block, blocks_total: blocks, status } = video.llrag;
    const image = hasPicture(video)
      ? h("img", { src: links.thumbnail(video.id), alt: "", loading: "lazy", class: isTiny(video) ? "pixels" : "" })
      : h("span", { class: "no-picture" }, statusName(video));
    const bar = ["running", "queued"].includes(status)
      ? h("progress", { max: blocks || 1, value: block, "aria-label": `Progress of ${titleOf(video)}` })
      : null;
    return h(
      "div",
      { class: "card-picture" },
      image,
      h("span", { class: "time" }, timecode(video.llrag.seconds_done)),
      bar,
    );
  }

  #words(video) {
    const { model, created_at: created } = video;
    const { take_of: takes, compare_of: comparison, take, picked } = video.llrag;
    const group = comparison ?? takes;
    const facts = [model, memoryName(video), when(created)];
    return h(
      "div",
      { class: "card-words" },
      h(
        this.below,
        { class: "card-title" },
        h("a", { href: `#/video/${video.id}`, "data-action": "open" }, titleOf(video)),
      ),
      h("p", { class: "dim" }, facts.join(" · ")),
      h(
        "p",
        { class: "row tight" },
        h("span", { class: `state ${video.llrag.status}` }, statusName(video)),
        picked ? h("span", { class: "state picked" }, "Picked") : null,
        group
          ? h("a", { href: `#/group/${group}`, "data-action": "group" }, comparison ? "Comparison" : `Take ${take}`)
          : null,
      ),
    );
  }

  #actions(video) {
    const exported = this.info.exports.map(format =>
      h(
        "a",
        { href: links.exported(video.id, format), download: "", "data-action": `export-${format}` },
        format.toUpperCase(),
      ),
    );
    const playable = hasPicture(video);
    return h(
      "details",
      { class: "more" },
      h("summary", { "data-action": "more", "aria-label": `More for ${titleOf(video)}` }, "More"),
      h(
        "div",
        { class: "menu" },
        h(
          "a",
          { class: "button quiet", href: `#/video/${video.id}`, "data-action": "extend" },
          this.info.generates ? "Watch and extend" : "Watch",
        ),
        playable && this.info.generates
          ? h(
              "button",
              { type: "button", class: "quiet", "data-action": "reference", onclick: () => this.#reference(video) },
              "Use as a reference",
            )
          : null,
        playable ? h("p", { class: "row tight exports" }, "Export: ", exported) : null,
        // runs of the command line are not the server's to delete
        this.info.generates &&
          video.id.startsWith("video_") &&
          actionButton("Delete", () => this.#delete(video), { class: "quiet danger", "data-action": "delete" }),
      ),
    );
  }

  #reference(video) {
    this.onreference(freeNameOf(video), video.id);
    announce(`${titleOf(video)} is now a reference`);
  }

  async #delete(video) {
    if (!(await confirmed(`Delete "${titleOf(video)}" and its files? This cannot be undone.`))) return;
    await api.remove(video.id);
    announce(`${titleOf(video)} was deleted`);
    await this.#refresh();
    this.heading.focus();
  }
}

/** Ask before something that cannot be undone. */
function confirmed(question) {
  return new Promise(resolve => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "question", onclose: () => (resolve(dialog.returnValue === "yes"), dialog.remove()) },
      h(
        "form",
        { method: "dialog" },
        h("p", { id: "question" }, question),
        h(
          "p",
          { class: "row" },
          h("button", { value: "no" }, "Keep"),
          h("button", { value: "yes", class: "danger" }, "Delete"),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
