"use strict";
const videos = [...document.querySelectorAll(".player video")];
const frame = 1 / data.fps, middle = frame / 2; // of a frame, so that rounding shows no other one
const minutes = time => `${Math.floor(time / 60)}:${(time % 60).toFixed(1).padStart(4, "0")}`;
let shownShot = -1, shownBlock = -1;

videos.forEach((video, number) => { video.src = data.sources[number]; });
$("seek").max = data.seconds - frame;
$("seek").step = frame;
data.shots.forEach((shot, number) => {
  const item = make("li"), button = make("button", shot.name);
  item.style.flexGrow = shot.end - shot.start;
  button.type = "button";
  button.title = shot.prompt;
  button.style.background = shot.color;
  button.addEventListener("click", () => go(shot.start));
  item.append(button);
  $("shots").append(item);
});

function go(time) {
  seek(videos, Math.min(Math.round(time / frame) * frame + middle, data.seconds - middle));
  show();
}

function show() {
  const time = keepInStep(videos), at = Math.min(time, data.seconds - middle);
  $("clock").textContent = `${minutes(time)} / ${minutes(data.seconds)}`;
  $("seek").value = time - middle;
  $("seek").style.setProperty("--played", `${100 * at / data.seconds}%`);
  const shot = data.shots.findLastIndex(each => each.start <= at), block = data.blocks.findLastIndex(each => each.start <= at);
  if (shot !== shownShot) showShot(shownShot = shot);
  if (block !== shownBlock) showBlock(shownBlock = block);
}

function showShot(number) {
  const shot = data.shots[number];
  document.querySelectorAll("#shots button").forEach((button, other) => button.setAttribute("aria-current", other === number));
  const detail = make("span", `${shot.kind === "start" ? "begins the scene" : `begins with a ${shot.kind}`} · may retrieve from ${shot.remembers}`, "dim");
  $("now").replaceChildren(make("b", shot.name), `“${shot.prompt}”`, detail);
}

function showBlock(number) {
  const retrieved = data.blocks[number].retrieved;
  const figures = pictures(retrieved, data.thumbnails, each => ({
    alt: `${each.source} at ${each.seconds.toFixed(1)} s`,
    caption: `${each.seconds.toFixed(1)} s · ${each.cosine.toFixed(2)}`,
  }));
  figures.forEach((figure, index) => {
    figure.style.setProperty("--shot", retrieved[index].color);
    figure.querySelector("figcaption").prepend(make("b", retrieved[index].source));
  });
  $("retrieved").replaceChildren(...(figures.length ? figures : [make("p", "No frames were retrieved for this block.")]));
}

// Stopped, both show the same frame.
function play() {
  toggle(videos);
  if (videos[0].paused) go(Math.floor(videos[0].currentTime / frame) * frame);
}

$("play").addEventListener("click", play);
videos.forEach(video => video.addEventListener("click", play));
$("seek").addEventListener("input", event => go(Number(event.target.value)));
if ($("look")) $("look").addEventListener("click", event => {
  go(Number(event.target.dataset.time));
  if (videos[0].paused) play();
});
document.addEventListener("keydown", event => {
  if (event.key !== " " || event.target.closest("button, input, summary")) return;
  event.preventDefault();
  play();
});
go(0);
(function follow() {
  show();
  requestAnimationFrame(follow);
})();
