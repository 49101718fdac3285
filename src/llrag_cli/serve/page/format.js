// Numbers as people read them.

/** Position in a video: `0:07.4`. */
export function timecode(seconds) {
  const tenths = Math.max(0, Math.round(seconds * 10));
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  return `${minutes}:${rest}`;
}

/** A length: `8.5 s`, `2 min 5 s`, `1 h 20 min`. */
export function duration(seconds) {
  if (seconds < 59.95) return `${trimmed(seconds, seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return [`${Math.floor(whole / 60)} min`, whole % 60 ? `${whole % 60} s` : ""].join(" ").trim();
  const minutes = Math.round(whole / 60);
  return [`${Math.floor(minutes / 60)} h`, minutes % 60 ? `${minutes % 60} min` : ""].join(" ").trim();
}

/** A number with so many digits after the point at most. */
export function trimmed(number, digits) {
  return String(Number(number.toFixed(digits)));
}

/** Bytes in decimal units, as disks and the command line count them. */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${Number(value.toPrecision(3))} ${units[unit]}`;
}

/** `1 take`, `2 takes`. */
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** A moment of the past, from seconds since 1970. */
export function when(created) {
  const date = new Date(created * 1000);
  const today = new Date().toDateString() === date.toDateString();
  const options = today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", year: "numeric" };
  return date.toLocaleString("en-GB", options);
}
