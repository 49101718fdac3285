// The keys of the time line, for people to read.

import { h } from "./dom.js";

const KEYS = [
  [["Space"], "play or pause"],
  [["←", "→"], "one latent frame back or on"],
  [["Page Up", "Page Down"], "to the shot before or after"],
  [["Home", "End"], "to the start or the newest picture"],
];

export function keys() {
  const rows = KEYS.flatMap(([names, meaning]) => [
    h(
      "dt",
      {},
      names.flatMap((name, index) => [index ? " " : "", h("kbd", {}, name)]),
    ),
    h("dd", {}, meaning),
  ]);
  return h("details", { class: "keys" }, h("summary", {}, "Keys of the time line"), h("dl", {}, rows));
}
