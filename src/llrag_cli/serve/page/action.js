// Buttons that ask something of the server: pressed once at a time, and a failure is shown.

import { ApiError } from "./api.js";
import { h } from "./dom.js";
import { complain, settle } from "./notices.js";

/** Run an action with its button disabled, and show what went wrong. */
export async function attempt(button, action) {
  button?.setAttribute("aria-disabled", "true"); // `disabled` would take the focus away
  try {
    settle();
    return await action();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    complain(error);
    return undefined;
  } finally {
    button?.removeAttribute("aria-disabled");
  }
}

/** A button that runs an asynchronous action. */
export function actionButton(text, action, properties = {}) {
  const button = h("button", { type: "button", ...properties }, text);
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") attempt(button, action);
  });
  return button;
}
