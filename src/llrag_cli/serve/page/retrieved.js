// What the block under the play head retrieved: thumbnails below the moments they came from, tied to them by lines.

import { links } from "./api.js";
import { h, svg } from "./dom.js";
import { plural, timecode } from "./format.js";
import { isNative, isTiny } from "./video.js";

const GAP = 6; // pixels between thumbnails

export class Retrieved {
  constructor(follower, together, timeLine, label = "Retrieved for this moment") {
    Object.assign(this, { follower, together, timeLine });
    this.lines = svg("svg", { class: "ties", "aria-hidden": "true" });
    const { width, height } = follower.video.llrag;
    this.list = h("ul", { class: isTiny(follower.video) ? "thumbnails pixels" : "thumbnails" });
    this.list.style.setProperty("--ratio", `${width} / ${height}`);
    this.caption = h("p", { class: "caption" });
    this.element = h(
      "section",
      { class: isNative(follower.video) ? "retrieved native" : "retrieved", "aria-label": label },
      this.lines,
      this.list,
      this.caption,
    );
    together.addEventListener("tick", () => this.show());
    together.addEventListener("change", () => this.show());
    follower.addEventListener("change", () => this.show());
    new ResizeObserver(() => this.#arrange()).observe(this.element);
    this.show();
  }

  show() {
    const block = this.follower.at(this.together.time);
    const ready = (block?.retrieved ?? []).filter(({ seconds }) => seconds === null || seconds < this.together.edge);
    const text = JSON.stringify([
      block?.number,
      ready.map(({ frame }) => frame),
      this.timeLine.total,
      this.follower.video.llrag.status,
    ]);
    if (text === this.text) return;
    this.text = text;
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.frame : undefined;
    this.items = [...ready].sort((a, b) => a.frame - b.frame).map(each => ({ each, element: this.#thumbnail(each) }));
    this.list.replaceChildren(...this.items.map(({ element }) => element));
    if (focused) (this.list.querySelector(`[data-frame="${focused}"]`) ?? this.list.querySelector("button"))?.focus();
    this.caption.textContent = this.#sentence(block);
    this.#arrange();
  }

  #sentence(block) {
    if (isNative(this.follower.video)) return "Native: nothing is retrieved.";
    if (!block) return "Retrieved moments appear here, block by block.";
    const count = block.retrieved.length;
    if (!count)
      return `Block ${block.number + 1} retrieved nothing: there are no earlier frames that its shot may retrieve.`;
    return `Block ${block.number + 1} retrieved ${plural(count, "moment")}. Select one to go there.`;
  }

  #thumbnail({ frame, seconds, similarity, source }) {
    const place = seconds === null ? (source ?? "a reference") : timecode(seconds);
    const { id } = this.follower.video;
    const known = seconds !== null || id.startsWith("video_"); // references of other runs are files that the server does not show
    const image = h(
      "span",
      { class: "picture" },
      known ? h("img", { src: links.frame(id, frame), alt: "" }) : "reference",
    );
    const label = `${seconds === null ? "Reference" : "Moment"} ${place}, similarity ${similarity.toFixed(2)}`;
    const properties = {
      type: "button",
      "data-frame": frame,
      "aria-label": label,
      onclick: () => seconds !== null && this.together.seek(seconds),
    };
    return h(
      "li",
      {},
      h("button", properties, image, h("span", {}, place), h("span", { class: "dim" }, similarity.toFixed(2))),
    );
  }

  /** As near to their moments as they fit beside each other. */
  #arrange() {
    const width = this.element.clientWidth;
    if (!width || !this.items?.length) {
      this.lines.replaceChildren();
      return;
    }
    const { video } = this.follower;
    const size = Math.min(isTiny(video) ? 88 : 112, (width + GAP) / this.items.length - GAP);
    const wanted = this.items.map(({ each }) => ((each.seconds ?? 0) / this.timeLine.total) * width);
    const left = wanted.map(x => x - size / 2);
    for (let index = 0; index < left.length; index += 1)
      left[index] = Math.max(left[index], index ? left[index - 1] + size + GAP : 0);
    for (let index = left.length - 1, limit = width; index >= 0; index -= 1) {
      left[index] = Math.min(left[index], limit - size);
      limit = left[index] - GAP;
    }
    for (const [index, { element }] of this.items.entries()) {
      element.style.marginLeft = `${left[index] - (index ? left[index - 1] + size : 0)}px`;
      element.style.width = `${size}px`;
    }
    const tied = this.items.flatMap(({ each }, index) =>
      each.seconds === null ? [] : [[wanted[index], left[index] + size / 2]],
    );
    this.lines.replaceChildren(...tied.map(([from, to]) => svg("line", { x1: from, y1: 0, x2: to, y2: "100%" })));
  }
}
