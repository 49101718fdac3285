// Videos side by side in step: takes of a scene, or native against retrieval.

import { actionButton } from "./action.js";
import { api } from "./api.js";
import { h } from "./dom.js";
import { Follower } from "./follower.js";
import { announce } from "./notices.js";
import { Retrieved } from "./retrieved.js";
import { Stage } from "./stage.js";
import { TimeLine } from "./time-line.js";
import { Together } from "./together.js";
import { Transport } from "./transport.js";
import { isNative, isOpen, statusSentence, titleOf } from "./video.js";

/** One video of the group, with its name, its state and its time line. */
class Member {
  constructor(video, kind, index) {
    this.follower = new Follower(video);
    this.name =
      kind === "compare" ? (isNative(video) ? "Native" : "Retrieval") : `Take ${video.llrag.take ?? index + 1}`;
    this.stage = new Stage(this.follower, `${this.name}: ${titleOf(video)}`);
    this.status = h("p", { class: "dim status" });
    this.follower.addEventListener("change", () => this.#show());
    this.#show();
  }

  #show() {
    const text = statusSentence(this.follower.video, this.follower.fps);
    if (this.status.textContent !== text) this.status.textContent = text;
  }

  /** Its part of the page; `tools` stand beside the name. */
  figure(together, tools, subtitle) {
    this.timeLine = new TimeLine(this.follower, together);
    this.timeLine.element.setAttribute("aria-label", `Position in all videos; time line of ${this.name}`);
    const retrieved = new Retrieved(this.follower, together, this.timeLine, `${this.name}: retrieved for this moment`);
    const open = h(
      "a",
      { href: `#/video/${this.follower.video.id}` },
      "Open",
      h("span", { class: "visually-hidden" }, ` ${this.name}`),
    );
    return h(
      "section",
      { class: "member", "aria-label": this.name },
      h(
        "div",
        { class: "member-picture" },
        h(
          "div",
          { class: "panel-head" },
          h("h2", {}, this.name, " ", h("small", { class: "dim" }, subtitle)),
          h("div", { class: "row tight" }, tools, open),
        ),
        this.stage.element,
        this.status,
      ),
      h(
        "div",
        { class: "member-past" },
        h("h3", { class: "past-name" }, this.name),
        this.timeLine.element,
        retrieved.element,
      ),
    );
  }

  close() {
    this.stage.close();
    this.follower.close();
  }
}

/** Buttons to pick one of the takes; the picked one is pressed. */
class Picks {
  constructor(group) {
    this.group = group;
    this.buttons = new Map();
  }

  button(id, name) {
    const button = actionButton(`Pick ${name.toLowerCase()}`, async () => {
      const { picked } = await api.pick(this.group.id, id);
      this.show(picked);
      announce(`${name} is picked`);
    });
    this.buttons.set(id, button);
    return button;
  }

  show(picked) {
    for (const [id, button] of this.buttons) {
      button.setAttribute("aria-pressed", String(id === picked));
      button.closest(".member")?.classList.toggle("picked", id === picked);
    }
  }
}

export async function groupView(id, info) {
  const group = await api.group(id);
  const compare = group.kind === "compare";
  const members = group.videos.map((video, index) => new Member(video, group.kind, index));
  const together = new Together(members.map(({ stage }) => stage.source));
  const picks = new Picks(group);
  const grid = h("div", { class: "members" });
  for (const member of members) {
    const { video } = member.follower;
    const subtitle = compare
      ? isNative(video)
        ? "the last moments only"
        : `strategy ${video.llrag.memory}`
      : `seed ${video.llrag.seed}`;
    grid.append(
      member.figure(together, compare || !info.generates ? null : picks.button(video.id, member.name), subtitle),
    );
  }
  picks.show(group.picked);
  const transport = new Transport(together, {
    total: () => Math.max(...members.map(({ timeLine }) => timeLine.total)),
    open: () => members.some(({ follower }) => isOpen(follower.video)),
    screen: grid,
  });
  const title = titleOf(group.videos[0]);
  const element = h(
    "div",
    { class: compare ? "group compare" : "group" },
    h(
      "div",
      { class: "panel-head" },
      h("h1", { tabindex: "-1" }, compare ? "Native and retrieval" : "Takes", " ", h("small", { class: "dim" }, title)),
      h(
        "p",
        { class: "dim" },
        compare
          ? `The same scene, model and seed (${group.videos[0].llrag.seed}); only the memory differs.`
          : "The same scene, other seeds.",
      ),
    ),
    grid,
    transport.element,
  );
  return {
    title: compare ? "Native and retrieval" : `Takes: ${title}`,
    element,
    leave: () => {
      together.close();
      for (const member of members) member.close();
    },
  };
}
