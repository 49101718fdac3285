// Building elements. No markup is ever parsed from text, so nothing that a person or a model wrote can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "muted") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: `h("a", {href: "#/"}, "text", h("b", {}, "bold"))`. Properties `onX` are listeners. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

let ids = 0;

/** An id that no other element has. */
export function uniqueId(prefix) {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** A label with its control, the control after the text. */
export function field(text, control, { hint, className = "field" } = {}) {
  control.id ||= uniqueId("field");
  const note = hint ? h("small", { id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: className }, h("label", { for: control.id }, text), control, note);
}

/** A `<select>` of [value, text] pairs. */
export function select(options, chosen, onchange) {
  const element = h("select", { onchange: () => onchange(element.value) });
  for (const [value, text] of options) element.append(new Option(text, value, false, value === chosen));
  return element;
}

/** Calls `action` once after calls have stopped for some milliseconds. */
export function debounced(action, milliseconds) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** Whether the person asked for less motion. */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
