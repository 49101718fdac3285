// One video: its picture, its time line, what it retrieved, and directing it.

import { api, links } from "./api.js";
import { Direct } from "./direct.js";
import { h } from "./dom.js";
import { Facts } from "./facts.js";
import { Follower } from "./follower.js";
import { sharedDraft } from "./home-view.js";
import { keys } from "./keys.js";
import { Retrieved } from "./retrieved.js";
import { freeName } from "./scene.js";
import { Stage } from "./stage.js";
import { TimeLine } from "./time-line.js";
import { Together } from "./together.js";
import { Transport } from "./transport.js";
import { freeNameOf, hasPicture, isOpen, titleOf } from "./video.js";

/** What is done with a finished video: remember it in a scene, take it elsewhere. */
function uses(follower, info) {
  const { id } = follower.video;
  const remember = h(
    "button",
    { type: "button", class: "quiet", onclick: () => asReference(follower.video, info) },
    "Use as a reference",
  );
  const exported = info.exports.map(format =>
    h("a", { class: "button quiet", href: links.exported(id, format), download: "" }, format.toUpperCase()),
  );
  const element = h(
    "section",
    { class: "panel uses", "aria-labelledby": "uses" },
    h("h2", { id: "uses" }, "Use"),
    info.generates ? h("p", { class: "row" }, remember) : null,
    h("p", { class: "row" }, h("span", {}, "Export"), exported),
  );
  const show = () => (element.hidden = isOpen(follower.video) || !hasPicture(follower.video));
  follower.addEventListener("change", show);
  show();
  return element;
}

function asReference(video, info) {
  const draft = sharedDraft(info);
  const name = freeName(draft.scene, freeNameOf(video));
  draft.change({ ...draft.scene, references: { ...draft.scene.references, [name]: { path: video.id } } });
  location.hash = "#/";
}

export async function watchView(id, info) {
  const follower = new Follower(await api.video(id));
  const { video } = follower;
  const stage = new Stage(follower, titleOf(video));
  const together = new Together([stage.source]);
  const timeLine = new TimeLine(follower, together);
  const transport = new Transport(together, {
    total: () => timeLine.total,
    open: () => isOpen(follower.video),
    screen: stage.element,
  });
  const retrieved = new Retrieved(follower, together, timeLine);
  const group = video.llrag.compare_of ?? video.llrag.take_of;
  stage.element.addEventListener("click", () => together.toggle());
  const element = h(
    "div",
    { class: "watch" },
    h(
      "div",
      { class: "panel-head" },
      h("h1", { tabindex: "-1" }, titleOf(video)),
      group
        ? h("a", { href: `#/group/${group}` }, video.llrag.compare_of ? "Show the comparison" : "Show all takes")
        : null,
    ),
    h("div", { class: "screening" }, stage.element, transport.element, timeLine.element, retrieved.element, keys()),
    h(
      "aside",
      { "aria-label": "Directing" },
      new Direct(follower, info).element,
      new Facts(follower, together).element,
      uses(follower, info),
    ),
  );
  return {
    title: titleOf(video),
    element,
    leave: () => {
      together.close();
      stage.close();
      follower.close();
    },
  };
}
