// Whether the server can be reached, shown at the top of the page.

let online = true;

/** Note whether the last request reached the server. */
export function reachable(now) {
  if (now === online) return;
  online = now;
  const place = document.getElementById("connection");
  place.hidden = now;
  place.textContent = now ? "" : "Offline: trying again";
  if (!now) setTimeout(probe, 2000);
}

async function probe() {
  try {
    await fetch("/v1/llrag/info");
    reachable(true);
    dispatchEvent(new Event("studio:online"));
  } catch {
    setTimeout(probe, 2000);
  }
}
