"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("player"), player = dialog.querySelector("video");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const videos = new Map(); // of takes that were played
let playing = null; // the frame that plays its shot

const opening = shot => shot.start + 0.001; // inside the first frame, whatever the rounding

function videoOf(take) {
  if (!videos.has(take)) {
    const video = document.createElement("video");
    video.muted = true; video.playsInline = true; video.preload = "auto"; video.tabIndex = -1;
    video.src = data.videos[take];
    videos.set(take, video);
  }
  return videos.get(take);
}

function preview(frame) {
  if (playing === frame || still.matches || dialog.open) return;
  stop();
  playing = frame;
  const video = videoOf(Number(frame.dataset.take)), shot = data.shots[Number(frame.dataset.shot)];
  frame.append(video);
  video.addEventListener("seeked", () => { if (playing === frame) frame.classList.add("playing"); }, { once: true });
  video.currentTime = opening(shot);
  video.play().catch(() => {});
  const follow = () => {
    if (playing !== frame) return;
    if (video.ended || video.currentTime >= shot.end) {
      video.currentTime = opening(shot);
      if (video.paused) video.play().catch(() => {});
    }
    frame.style.setProperty("--progress", (video.currentTime - shot.start) / (shot.end - shot.start));
    requestAnimationFrame(follow);
  };
  follow();
}

function stop() {
  if (!playing) return;
  const video = videoOf(Number(playing.dataset.take));
  video.pause();
  video.remove();
  playing.classList.remove("playing");
  playing = null;
}

// Name, times and prompt of the shot that the large player shows.
function describe() {
  const at = data.shots.findLastIndex(shot => player.currentTime >= shot.start - 0.001);
  const shot = data.shots[Math.max(at, 0)], take = data.takes[Number(player.dataset.take)];
  document.getElementById("playing").textContent = [shot.name, take].filter(Boolean).join(" · ");
  dialog.querySelector(".times").textContent = shot.times;
  dialog.querySelector(".prompt").textContent = shot.prompt;
}

function open(frame) {
  stop();
  player.dataset.take = frame.dataset.take;
  player.src = data.videos[Number(frame.dataset.take)];
  player.currentTime = opening(data.shots[Number(frame.dataset.shot)]);
  dialog.showModal();
  describe();
  player.play().catch(() => {});
}

for (const frame of document.querySelectorAll("button.frame")) {
  frame.addEventListener("pointerenter", event => { if (event.pointerType === "mouse") preview(frame); });
  frame.addEventListener("pointerleave", stop);
  frame.addEventListener("focus", () => { if (frame.matches(":focus-visible")) preview(frame); });
  frame.addEventListener("blur", stop);
  frame.addEventListener("click", () => open(frame));
}
player.addEventListener("timeupdate", describe);
player.addEventListener("seeked", describe);
dialog.querySelector("button").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { player.pause(); player.removeAttribute("src"); player.load(); });
