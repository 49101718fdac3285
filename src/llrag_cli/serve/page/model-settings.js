// Settings of the model's configuration as text: a line `name: value` for each, as under `set` in a scene file.

/** The lines of what a scene has under `set`, nested or with dots. */
export function linesOf(set, prefix = "") {
  return Object.entries(set ?? {}).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? linesOf(value, `${prefix}${name}.`)
      : [`${prefix}${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`],
  );
}

/** What lines say, as {set, problem}: the settings, and the first line that says nothing. */
export function settingsOf(text) {
  const set = {};
  for (const line of text.split("\n").map(each => each.trim())) {
    if (!line) continue;
    const [, name, value] = line.match(/^([\w.]+)\s*[:=]\s*(.+)$/) ?? [];
    if (!name) return { set: undefined, problem: line };
    set[name] = valueOf(value);
  }
  return { set: Object.keys(set).length ? set : undefined, problem: "" };
}

/** A number, `true`, `false`, `null`, a list, or otherwise a text. */
function valueOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
