// The first view: the comparison for a visitor of an empty studio, the composer, the library.

import { actionButton } from "./action.js";
import { ApiError, api } from "./api.js";
import { addressOf, Composer, defaultSeconds } from "./composer.js";
import { h } from "./dom.js";
import { Draft } from "./draft.js";
import { duration } from "./format.js";
import { Library } from "./library.js";
import { freeName, newScene, withReference } from "./scene.js";

let draft;

/** The draft that all views share. */
export function sharedDraft(info) {
  draft ??= Draft.restored(newScene(info.default_model, defaultSeconds(info)));
  return draft;
}

/** How long the comparison takes on this machine, once the server can tell. */
async function howLong(info, show) {
  try {
    const { generation_seconds: seconds, measuring } = await api.estimate({ ...info.comparison, compare: true });
    if (seconds !== null) show(` About ${duration(seconds)} on this machine.`);
    else if (measuring) setTimeout(() => howLong(info, show), 1000);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // it is no more than a number that is missing
  }
}

function welcome(info) {
  const start = actionButton(
    "Compare native and retrieval",
    async () => {
      location.hash = addressOf(await api.create({ ...info.comparison, compare: true }));
    },
    { class: "primary large" },
  );
  const takes = h("span", { class: "dim" }, "Both play while they are generated.");
  howLong(info, text => takes.append(text));
  return h(
    "section",
    { class: "welcome", "aria-labelledby": "welcome" },
    h(
      "div",
      {},
      h("h1", { id: "welcome", tabindex: "-1" }, "See what memory does"),
      h(
        "p",
        {},
        "One scene, generated twice from the same seed: a place, a cut to another one, and the return. The last prompt does not say what the place looked like. ",
        h("b", {}, "Native"),
        " generation sees only the last moments; ",
        h("b", {}, "retrieval"),
        " finds the place again in earlier frames.",
      ),
      h("p", { class: "row" }, start, takes),
    ),
    picture(),
  );
}

/** The idea in four frames: the last one looks up the first. */
function picture() {
  return h(
    "div",
    { class: "idea", "aria-hidden": "true" },
    h("span", { class: "frame here" }),
    h("span", { class: "frame here" }),
    h("span", { class: "frame there" }),
    h("span", { class: "frame back" }),
    h("span", { class: "arc" }),
  );
}

/** What a server that only shows videos has to say. */
function viewOnly() {
  return h(
    "section",
    { class: "panel", "aria-labelledby": "view-only" },
    h("h1", { id: "view-only", tabindex: "-1" }, "Watching only"),
    h(
      "p",
      {},
      "This server shows videos and generates none. Start ",
      h("code", {}, "llrag studio"),
      " to write and direct.",
    ),
  );
}

/** The library alone. */
export function libraryView(info) {
  const library = new Library(info, {
    onreference: (name, id) => {
      const shared = sharedDraft(info);
      shared.change(withReference(shared.scene, freeName(shared.scene, name), { path: id }));
      location.hash = "#/";
    },
    heading: "h1",
  });
  return { title: "Library", element: library.element, leave: () => library.close() };
}

export function homeView(info) {
  const composer = new Composer(sharedDraft(info), info);
  const library = new Library(info, {
    heading: "h2",
    onreference: (name, id) => {
      composer.references.add(freeName(composer.draft.scene, name), id);
      composer.references.element.scrollIntoView({ block: "center" });
    },
  });
  const first = info.first_visit && info.generates;
  const element = h(
    "div",
    { class: "home" },
    first ? welcome(info) : null,
    info.generates ? composer.element : viewOnly(),
    library.element,
  );
  if (first) {
    const heading = composer.element.querySelector("h1");
    heading.replaceWith(h("h2", { id: "write" }, "Or write a scene"));
  }
  return { title: "", element, leave: () => (library.close(), composer.close()) };
}
