// The time line below a video: shots, how far it is made, similarity of what was retrieved, and the play head.

import { h, svg } from "./dom.js";
import { duration, timecode } from "./format.js";
import { markStep } from "./shots-editor.js";
import { isOpen } from "./video.js";

const LATENT = 4; // video frames of a latent frame

export class TimeLine {
  constructor(follower, together) {
    Object.assign(this, { follower, together });
    this.shots = h("div", { class: "lane shots-lane" });
    this.made = h("div", { class: "made" });
    this.moments = h("div", { class: "moments" });
    this.range = svg("path", { class: "range" });
    this.line = svg("path", { class: "best", "vector-effect": "non-scaling-stroke" });
    this.chart = svg(
      "svg",
      { class: "similarity", preserveAspectRatio: "none", "aria-hidden": "true" },
      this.range,
      this.line,
    );
    this.value = h("span", { class: "value" });
    this.marks = h("div", { class: "marks" });
    this.head = h("div", { class: "play-head" });
    this.element = h(
      "div",
      {
        class: "time-line",
        role: "slider",
        tabindex: 0,
        "aria-label": "Position in the video",
        "aria-valuemin": 0,
        onkeydown: event => this.#key(event),
        onpointerdown: event => this.#drag(event),
      },
      this.marks,
      this.shots,
      h("div", { class: "lane made-lane" }, this.made, this.moments),
      h(
        "div",
        { class: "lane chart-lane" },
        this.chart,
        h("span", { class: "name" }, "Similarity of the retrieved ", this.value),
      ),
      this.head,
    );
    follower.addEventListener("change", () => this.show());
    together.addEventListener("tick", () => this.#move());
    together.addEventListener("change", () => this.#move());
    this.show();
  }

  /** The length of the video, as far as it is known. */
  get total() {
    const { video } = this.follower;
    const { latent_frames_total: frames, fps, seconds_done: done } = video.llrag;
    const planned = isOpen(video) && frames ? (LATENT * (frames - 1) + 1) / fps : 0;
    return Math.max(planned, done, this.follower.blocks.at(-1)?.end ?? 0, 0.1);
  }

  place(seconds) {
    return `${(100 * Math.min(seconds, this.total)) / this.total}%`;
  }

  show() {
    const { video, blocks } = this.follower;
    const { shots } = video.llrag;
    const total = this.total;
    const text = JSON.stringify([shots, total]);
    if (text !== this.text) {
      this.text = text;
      this.shots.replaceChildren(
        ...shots.map((shot, index) => this.#shot(shot, shots[index + 1]?.start ?? total, index)),
      );
      const step = markStep(total);
      const count = Math.floor(total / step - 0.15) + 1; // no mark so near to the end that its text would not fit
      this.marks.replaceChildren(...Array.from({ length: Math.max(1, count) }, (_, index) => this.#mark(index * step)));
      this.element.setAttribute("aria-valuemax", total.toFixed(1));
    }
    this.made.style.width = this.place(video.llrag.seconds_done);
    this.#draw(
      blocks.filter(block => block?.retrieved.length),
      total,
    );
    this.#move();
  }

  #shot({ start, prompt, change }, end, index) {
    const element = h(
      "div",
      { class: `shot-span ${change}`, title: prompt },
      h("span", {}, h("b", {}, index ? (change === "cut" ? "Cut " : "Switch ") : ""), prompt),
    );
    element.style.left = this.place(start);
    element.style.width = this.place(end - start);
    return element;
  }

  #mark(second) {
    const mark = h("span", {}, second ? duration(second) : "0");
    mark.style.left = this.place(second);
    return mark;
  }

  /** The best similarity of each block as a line, the others as a band below it; from 0 to 1. */
  #draw(blocks, total) {
    const height = value => (1 - Math.max(0, Math.min(1, value))).toFixed(3);
    let line = "";
    let band = "";
    let before = null;
    for (const { start, end, retrieved } of blocks) {
      const values = retrieved.map(({ similarity }) => similarity);
      const [best, least] = [height(Math.max(...values)), height(Math.min(...values))];
      line += `${before === start ? "L" : "M"}${start} ${best}H${end}`;
      band += `M${start} ${best}H${end}V${least}H${start}Z`;
      before = end;
    }
    this.chart.setAttribute("viewBox", `0 -0.06 ${total} 1.12`);
    this.line.setAttribute("d", line);
    this.range.setAttribute("d", band);
  }

  #move() {
    const { time, edge } = this.together;
    const at = Math.round(time * 20) / 20;
    if (at === this.at && edge === this.seen) return;
    Object.assign(this, { at, seen: edge });
    this.head.style.left = this.place(time);
    this.head.hidden = !edge;
    const block = this.follower.at(time);
    const values = (block?.retrieved ?? []).map(({ similarity }) => similarity);
    this.value.textContent = values.length ? Math.max(...values).toFixed(2) : "";
    this.element.setAttribute("aria-valuenow", time.toFixed(1));
    const shot = this.follower.shotAt(time);
    this.element.setAttribute("aria-valuetext", `${timecode(time)}${shot ? `, ${shot.prompt}` : ""}`);
    this.#moments(block);
  }

  #moments(block) {
    if (block?.number === this.number) return;
    this.number = block?.number;
    const own = (block?.retrieved ?? []).filter(({ frame }) => frame >= 0);
    this.moments.replaceChildren(
      ...own.map(({ seconds }) => {
        const moment = h("span");
        moment.style.left = this.place(seconds);
        return moment;
      }),
    );
  }

  #key(event) {
    const { together } = this;
    const frame = LATENT / this.follower.video.llrag.fps;
    const { shots } = this.follower.video.llrag;
    const go = {
      ArrowLeft: () => together.seek(together.time - frame),
      ArrowRight: () => together.seek(together.time + frame),
      PageUp: () => together.seek(shots.findLast(({ start }) => start < together.time - frame)?.start ?? 0),
      PageDown: () => together.seek(shots.find(({ start }) => start > together.time + 0.01)?.start ?? together.edge),
      Home: () => together.seek(0),
      End: () => together.seek(together.edge),
      " ": () => together.toggle(),
    }[event.key];
    if (!go) return;
    event.preventDefault();
    go();
  }

  #drag(event) {
    if (event.button) return;
    event.preventDefault();
    this.element.focus({ focusVisible: false });
    this.element.setPointerCapture(event.pointerId);
    const seek = ({ clientX }) => {
      const { left, width } = this.element.getBoundingClientRect();
      this.together.seek(((clientX - left) / width) * this.total);
    };
    seek(event);
    this.element.addEventListener("pointermove", seek);
    this.element.addEventListener("lostpointercapture", () => this.element.removeEventListener("pointermove", seek), {
      once: true,
    });
  }
}
