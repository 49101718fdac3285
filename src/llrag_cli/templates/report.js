"use strict";
const number = value => value === null || value === undefined ? "–" : value.toFixed(Math.abs(value) < 2 ? 4 : 2).replace("-", "−");

let players = [];

function show(index) {
  const choice = data.videos[index];
  $("players").replaceChildren();
  players = choice.memories.map(entry => {
    const box = make("div", undefined, "player"), video = make("video"), retrieved = make("div", undefined, "retrieved");
    box.append(make("p", entry.title), video, retrieved);
    video.src = entry.source; video.muted = true; video.playsInline = true; video.preload = "auto";
    video.setAttribute("aria-label", `${entry.title}: ${choice.prompt}`);
    $("players").append(box);
    return { video, retrieved, entry, shown: -1 };
  });
  const table = make("table", undefined, "numbers"), head = make("tr");
  head.append(make("th", "metric"), ...choice.memories.map(entry => make("th", entry.title)));
  table.append(head);
  for (const metric of data.metrics) {
    const values = choice.memories.map(entry => entry.metrics[metric.name]);
    if (values.every(value => value === null || value === undefined)) continue;
    const row = make("tr");
    row.append(make("td", metric.heading), ...values.map(value => make("td", number(value))));
    table.append(row);
  }
  $("drill").replaceChildren(table);
  $("seek").max = choice.seconds;
  $("seek").value = 0;
  $("play").textContent = "Play";
  tick();
}

// What each block retrieved is shown below its video.
function tick() {
  if (!players.length) return;
  const time = keepInStep(players.map(({ video }) => video));
  $("clock").textContent = `${time.toFixed(1)} s`;
  $("seek").value = time;
  for (const player of players) {
    const blocks = player.entry.blocks, at = blocks.findLastIndex(block => block.time <= time);
    if (at === player.shown) continue;
    player.shown = at;
    player.retrieved.replaceChildren(...pictures(at < 0 ? [] : blocks[at].frames, player.entry.thumbnails, frame => ({
      alt: `retrieved from ${frame.time.toFixed(1)} s`,
      caption: `${frame.time.toFixed(1)} s · ${frame.cosine.toFixed(2)}`,
    })));
  }
}

$("play").addEventListener("click", () => toggle(players.map(({ video }) => video)));
$("seek").addEventListener("input", event => {
  seek(players.map(({ video }) => video), Number(event.target.value));
  tick();
});
data.videos.forEach((choice, index) => $("choice").append(new Option(choice.title, index)));
$("choice").addEventListener("change", event => show(Number(event.target.value)));
if (data.videos.length) show(0);
setInterval(tick, 60);
