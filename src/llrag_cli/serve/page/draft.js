// What is being written, kept in this browser so that closing the page does not lose it.

const KEY = "llrag-studio-draft";

/** One scene that several parts of the page show and change. */
export class Draft {
  #listeners = new Set();

  constructor(scene) {
    this.scene = scene;
  }

  /** The draft of the last visit, or one that starts with `scene`. */
  static restored(scene) {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY));
      if (kept?.shots?.length && kept.shots.every(shot => typeof shot.prompt === "string" && shot.seconds > 0))
        return new Draft(kept);
    } catch {
      // storage is switched off, or holds something else: start anew
    }
    return new Draft(scene);
  }

  /** Listen to changes; `source` says who made one, so that a text field is not rewritten while it is typed in. */
  subscribe(listener) {
    this.#listeners.add(listener);
  }

  change(scene, source) {
    this.scene = scene;
    try {
      localStorage.setItem(KEY, JSON.stringify(scene));
    } catch {
      // storage is switched off or full: the draft lives as long as the page
    }
    for (const listener of this.#listeners) listener(scene, source);
  }
}
