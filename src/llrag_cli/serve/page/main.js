// Start of the page: what the installation can do, then the view that the address names.

import { ApiError, api } from "./api.js";
import { h } from "./dom.js";
import { sentence, settle } from "./notices.js";
import { groupView } from "./group-view.js";
import { homeView, libraryView } from "./home-view.js";
import { watchView } from "./watch-view.js";

const main = document.getElementById("main");
let info;
let leave = () => {};

/** The view for a route, as {title, element, leave}. */
async function view([name, argument]) {
  if ((name === "video" || name === "videos") && argument) return watchView(argument, info);
  if (name === "group" && argument) return groupView(argument, info);
  if (name === "run" && argument) {
    const video = await api.open(argument);
    location.replace(`#/video/${video.id}`);
    return null;
  }
  info = await api.info(); // whether there are videos may have changed
  return name === "library" ? libraryView(info) : homeView(info);
}

function problem(error) {
  return {
    title: "Not available",
    element: h(
      "section",
      { class: "panel problem" },
      h("h1", { tabindex: "-1" }, sentence(error.message)),
      error.hint ? h("p", {}, sentence(error.hint)) : null,
      h(
        "p",
        {},
        h("button", { type: "button", onclick: route }, "Try again"),
        " ",
        h("a", { href: "#/library" }, "Open the library"),
      ),
    ),
  };
}

let routes = 0;

async function route(event) {
  const mine = ++routes;
  settle();
  const address = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  let shown;
  try {
    info ??= await api.info();
    shown = await view(address);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    shown = problem(error);
  }
  if (mine !== routes || shown === null) {
    shown?.leave?.();
    return;
  }
  leave();
  leave = shown.leave ?? (() => {});
  main.replaceChildren(shown.element);
  document.title = shown.title ? `${shown.title} · llrag studio` : "llrag studio";
  for (const link of document.querySelectorAll("nav a")) {
    link.toggleAttribute("aria-current", link.getAttribute("href") === `#/${address[0]}`);
    if (link.hasAttribute("aria-current")) link.setAttribute("aria-current", "page");
  }
  if (event) {
    scrollTo(0, 0);
    main.querySelector("h1")?.focus({ preventScroll: true });
  }
}

addEventListener("hashchange", route);
addEventListener("studio:online", () => main.querySelector(".problem") && route());
document.getElementById("skip").addEventListener("click", () => main.focus());
route();
