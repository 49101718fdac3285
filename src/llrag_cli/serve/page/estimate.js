// What a scene will take, asked of the server whenever it changes.

import { ApiError, api } from "./api.js";
import { debounced, h } from "./dom.js";
import { bytes, duration } from "./format.js";
import { sentence } from "./notices.js";

const AGAIN = 1000; // milliseconds before what is being measured is asked for again

export class Estimate {
  /** `onreadings(readings)` gets what the model makes of each prompt; `onfits(fits)` whether it can be made. */
  constructor({ onreadings, onfits }) {
    Object.assign(this, { onreadings, onfits });
    this.numbers = ["Length", "Time to generate", "Memory", "Disk"].map(name => [name, h("dd", {}, "–")]);
    this.problem = h("p", { class: "bad", role: "status" });
    this.element = h(
      "section",
      { class: "estimate", "aria-label": "Estimate" },
      h(
        "dl",
        { class: "numbers" },
        this.numbers.map(([name, value]) => h("div", {}, h("dt", {}, name), value)),
      ),
      this.problem,
    );
    this.ask = debounced(request => this.#ask(request), 250);
  }

  close() {
    clearTimeout(this.timer);
    this.running?.abort();
  }

  /** `request()` gives the job to estimate, or null while there is nothing to ask about. */
  async #ask(request) {
    this.close();
    const running = (this.running = new AbortController());
    try {
      const job = await request();
      if (running.signal.aborted) return;
      if (!job) return this.#clear("");
      const estimate = await api.estimate(job, running.signal);
      this.#show(estimate);
      if (estimate.measuring) this.timer = setTimeout(() => this.#ask(request), AGAIN);
    } catch (error) {
      if (error.name === "AbortError" || running.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      this.#clear(`${sentence(error.message)} ${sentence(error.hint)}`);
    }
    return undefined;
  }

  #show(estimate) {
    const {
      seconds,
      generation_seconds: time,
      memory_bytes: memory,
      disk_bytes: disk,
      fits,
      problem,
      measuring,
      reading,
    } = estimate;
    const missing = measuring ? "measuring" : seconds ? "not known yet" : "–";
    const known = (value, text, otherwise = "–") => (value === null || value === undefined ? otherwise : text(value));
    this.#fill([
      known(seconds, duration),
      known(time, value => `about ${duration(value)}`, missing),
      known(memory, bytes, missing),
      known(disk, bytes),
    ]);
    this.problem.textContent = problem ? `${sentence(problem.message)} ${sentence(problem.hint ?? "")}` : "";
    this.onreadings(reading ?? []);
    this.onfits(fits && !problem);
  }

  #clear(problem) {
    this.#fill(["–", "–", "–", "–"]);
    this.problem.textContent = problem;
    this.onreadings([]);
    this.onfits(false);
  }

  #fill(values) {
    for (const [index, [, place]] of this.numbers.entries()) place.textContent = values[index];
  }
}
