"use strict";
// What pages with several videos share: one button and one clock for all, and pictures of what a block retrieved.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};

// Videos follow the first one: they make up for small gaps by their speed. Returns its time.
function keepInStep([lead, ...others]) {
  const time = lead.currentTime;
  for (const video of others) {
    const gap = video.currentTime - time;
    if (Math.abs(gap) > (lead.paused ? 0.001 : 0.08)) video.currentTime = time;
    if (!lead.paused && video.paused && !video.ended) video.play().catch(() => {});
    if (lead.paused && !video.paused) video.pause();
    video.playbackRate = lead.paused ? 1 : Math.min(1.1, Math.max(0.9, 1 - gap));
  }
  $("play").textContent = lead.paused ? "Play" : "Pause";
  return time;
}

function seek(videos, time) {
  for (const video of videos) video.currentTime = time;
}

// Plays all videos, from the beginning if they have ended, or stops them.
function toggle(videos) {
  if (!videos.length) return;
  if (!videos[0].paused) return videos.forEach(video => video.pause());
  seek(videos, videos[0].ended ? 0 : videos[0].currentTime);
  for (const video of videos) video.play().catch(() => {});
}

// Figures of retrieved frames; `describe` says what stands below each.
function pictures(frames, thumbnails, describe) {
  return frames.map(frame => {
    const figure = make("figure"), image = make("img"), { alt, caption } = describe(frame);
    image.src = thumbnails[frame.frame] || "data:,";
    image.alt = alt;
    figure.append(image, make("figcaption", caption));
    return figure;
  });
}
