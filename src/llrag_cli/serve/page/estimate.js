// What a scene will take, asked of the server whenever it changes.

import { ApiError, api } from "./api.js";
import { debounced, h } from "./dom.js";
import { bytes, duration } from "./format.js";
import { sentence } from "./notices.js";

const AGAIN = 1500; // milliseconds

export class Estimate {
  /** `onreadings(readings)` gets what the model makes of each prompt; `onfits(fits)` whether it can be made. */
  constructor({ onreadings, onfits }) {
    Object.assign(this, { onreadings, onfits });
    this.numbers = ["Length", "Time to generate", "Memory", "Disk"].map(name => [name, h("dd", {}, "–")]);
    this.problem = h("p", { class: "bad", role: "status" });
    this.element = h(
      "section",
      { class: "estimate", "aria-label": "Estimate" },
      h("dl", { class: "numbers" }, this.numbers.map(([name, value]) => h("div", {}, h("dt", {}, name), value))),
      this.problem,
    );
    this.ask = debounced(request => this.#ask(request), 250);
  }

  /** Ask again for what the server did not know yet: it may still be starting what works it out. */
  #later(request) {
    this.tries = (this.tries ?? 0) + 1;
    clearTimeout(this.timer);
    if (this.tries < 20) this.timer = setTimeout(() => this.#ask(request), AGAIN);
  }

  /** `request()` gives the job to estimate, or null while there is nothing to ask about. */
  async #ask(request) {
    this.running?.abort();
    const running = (this.running = new AbortController());
    try {
      const job = await request();
      if (running.signal.aborted) return;
      if (!job) {
        this.#clear("");
        return;
      }
      const estimate = await api.estimate(job, running.signal);
      this.#show(estimate);
      if (estimate.fits && estimate.memory_bytes === null) this.#later(request);
      else this.tries = 0;
    } catch (error) {
      if (error.name === "AbortError" || running.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      this.#clear(`${sentence(error.message)} ${sentence(error.hint)}`);
    }
  }

  #show(estimate) {
    const { seconds, generation_seconds: time, memory_bytes: memory, disk_bytes: disk, fits, problem, reading } = estimate;
    const known = (value, text) => (value === null || value === undefined ? "–" : text(value));
    this.#fill([known(seconds, duration), known(time, value => `about ${duration(value)}`), known(memory, bytes), known(disk, bytes)]);
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
