"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
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

// Videos follow the first one; what each block retrieved is shown below its video.
function tick() {
  if (!players.length) return;
  const lead = players[0].video, time = lead.currentTime;
  $("clock").textContent = `${time.toFixed(1)} s`;
  $("seek").value = time;
  for (const player of players) {
    const gap = player.video.currentTime - time;
    if (player !== players[0]) {
      if (Math.abs(gap) > 0.08) player.video.currentTime = time;
      player.video.playbackRate = lead.paused ? 1 : Math.min(1.1, Math.max(0.9, 1 - gap));
    }
    const blocks = player.entry.blocks;
    let at = -1;
    for (let i = 0; i < blocks.length && blocks[i].time <= time; i++) at = i;
    if (at === player.shown) continue;
    player.shown = at;
    player.retrieved.replaceChildren(...(at < 0 ? [] : blocks[at].frames).map(frame => {
      const figure = make("figure"), image = make("img");
      image.src = player.entry.thumbnails[frame.frame] || "data:,";
      image.alt = `retrieved from ${frame.time.toFixed(1)} s`;
      figure.append(image, make("figcaption", `${frame.time.toFixed(1)} s · ${frame.cosine.toFixed(2)}`));
      return figure;
    }));
  }
}

function toggle() {
  if (!players.length) return;
  if (!players[0].video.paused) {
    for (const { video } of players) video.pause();
    $("play").textContent = "Play";
    return;
  }
  const from = players[0].video.ended ? 0 : players[0].video.currentTime;
  for (const { video } of players) video.currentTime = from;
  Promise.all(players.map(({ video }) => video.play())).then(() => { $("play").textContent = "Pause"; });
}

$("play").addEventListener("click", toggle);
$("seek").addEventListener("input", event => {
  for (const { video } of players) video.currentTime = Number(event.target.value);
  tick();
});
data.videos.forEach((choice, index) => $("choice").append(new Option(choice.title, index)));
$("choice").addEventListener("change", event => show(Number(event.target.value)));
if (data.videos.length) show(0);
setInterval(tick, 60);
