// What a scene will take, asked of the server whenever it changes.

import { ApiError, api } from "./api.js";
import { debounced, h } from "./dom.js";
import { bytes, duration } from "./format.js";
import { sentence } from "./notices.js";

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

  /** `request()` gives the job to estimate, or null while there is nothing to ask about. */
  async #ask(request) {
    this.running?.abort();
    const running = (this.running = new AbortController());
    try {
      const job = await request();
      if (running.signal.aborted) return;
      if (job) this.#show(await api.estimate(job, running.signal));
      else this.#clear("");
    } catch (error) {
      if (error.name === "AbortError" || running.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      this.#clear(`${sentence(error.message)} ${sentence(error.hint)}`);
    }
  }

  #show(estimate) {
    const {
      seconds,
      generation_seconds: time,
      memory_bytes: memory,
      disk_bytes: disk,
      fits,
      problem,
      reading,
    } = estimate;
    const known = (value, text) => (value === null || value === undefined ? "–" : text(value));
    this.#fill([
      known(seconds, duration),
      seconds && time === null ? "not known yet" : known(time, value => `about ${duration(value)}`),
      known(memory, bytes),
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
