// Messages: read aloud by screen readers, and problems shown until they are dismissed.

import { h } from "./dom.js";

/** Say something to screen readers only; the page shows it elsewhere. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Show a problem, with a hint where there is one. */
export function complain(error) {
  const dismiss = h("button", { type: "button", class: "quiet", onclick: () => notice.remove() }, "Dismiss");
  const notice = h(
    "div",
    { class: "notice bad", role: "alert" },
    h("p", {}, h("strong", {}, sentence(error.message)), error.hint ? ` ${sentence(error.hint)}` : null),
    dismiss,
  );
  document.getElementById("notices").replaceChildren(notice);
}

/** Remove the message, once what it was about is over. */
export function settle() {
  document.getElementById("notices").replaceChildren();
}

/** A sentence of the library as a sentence of a page: with a capital and a full stop. */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  const capital = trimmed[0].toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
