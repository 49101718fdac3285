// What a video object says, in words.

import { duration, plural } from "./format.js";

export function titleOf(video) {
  return video.llrag.title || video.prompt || video.llrag.shots[0]?.prompt || video.llrag.run;
}

export function isNative(video) {
  return video.llrag.memory === "none";
}

export function memoryName(video) {
  return isNative(video) ? "native" : `retrieval: ${video.llrag.memory}`;
}

/** Whether the video is still being made, or will be. */
export function isOpen(video) {
  return ["queued", "running"].includes(video.llrag.status);
}

/** Whether the file of the video has something to show. */
export function hasPicture(video) {
  return Boolean(video.llrag.segments);
}

/** Whether the picture is so small that its pixels are shown as they are. */
export function isTiny(video) {
  return video.llrag.height <= 256;
}

/** Whether another process generates the video, which this server can only watch. */
export function isForeign(video) {
  return isOpen(video) && !video.id.startsWith("video_");
}

/** The state in a word or two. */
export function statusName(video) {
  const { status, paused, position } = video.llrag;
  if (paused && isOpen(video)) return "Paused";
  if (status === "queued") return position ? `Queued, ${plural(position, "video")} before it` : "Queued";
  return { running: "Generating", completed: "Finished", cancelled: "Stopped", failed: "Failed" }[status] ?? status;
}

/** The state in a sentence, with how long it will take where that is known; `fps` is the speed of generation. */
export function statusSentence(video, fps) {
  const {
    status,
    paused,
    block,
    blocks_total: blocks,
    seconds_done: done,
    latent_frames_total: total,
    latent_frames: made,
  } = video.llrag;
  if (status === "failed") return video.error?.message ? `Failed: ${video.error.message}` : "Failed";
  const parts = [statusName(video)];
  if (status === "cancelled") parts.push(`${duration(done)} kept`);
  if (status === "running" || (paused && block)) parts.push(`block ${block} of ${blocks}`);
  if (status === "running" && !paused && fps) {
    parts.push(`${fps < 10 ? fps.toFixed(1) : Math.round(fps)} fps`);
    const left = (4 * (total - made)) / fps;
    if (left >= 1) parts.push(`about ${duration(left)} left`);
  }
  if (status === "completed") parts.push(duration(done));
  return parts.join(" · ");
}

/** A name for a video as a reference of a scene. */
export function freeNameOf(video) {
  const words = titleOf(video)
    .normalize()
    .match(/[\p{L}\p{N}]+/gu) ?? ["video"];
  return words.slice(0, 4).join("-").slice(0, 40);
}
