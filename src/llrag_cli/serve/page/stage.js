// The picture of one video, with what is to be said over it while there is none.

import { h } from "./dom.js";
import { LiveSource } from "./live-source.js";
import { hasPicture, isOpen, isTiny, statusName } from "./video.js";

export class Stage {
  constructor(follower, label) {
    const { video } = follower;
    this.follower = follower;
    const { width, height } = video.llrag;
    this.element = h("div", { class: isTiny(video) ? "stage pixels" : "stage" });
    this.video = h("video", {
      muted: true,
      playsinline: true,
      disablepictureinpicture: true,
      tabindex: -1,
      "aria-label": label,
    });
    this.note = h("p", { class: "stage-note" });
    this.notice = h("p", { class: "stage-notice", role: "status" });
    this.element.append(this.video, this.note, this.notice);
    this.element.style.setProperty("--ratio", `${width} / ${height}`);
    this.source = new LiveSource(this.video, video);
    this.source.addEventListener("advance", () => this.show());
    follower.addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    const { video, ended } = this.follower;
    if (ended) this.source.finished();
    const begun = this.source.edge > 0;
    this.note.hidden = begun;
    this.note.textContent = this.#waiting(video);
    this.notice.hidden = !this.source.notice;
    if (this.notice.textContent !== this.source.notice) this.notice.textContent = this.source.notice;
  }

  #waiting(video) {
    if (video.llrag.status === "running")
      return video.llrag.block ? "Waiting for the first picture" : "Loading the model";
    if (isOpen(video)) return statusName(video);
    if (video.llrag.status === "completed") return "Loading the video";
    return hasPicture(video) ? "Loading the video" : `${statusName(video)} before its first picture`;
  }

  close() {
    this.source.close();
  }
}
