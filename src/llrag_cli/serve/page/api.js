// Every call to the server. A failure is an `ApiError` with a sentence for people.

import { reachable } from "./connection.js";

export class ApiError extends Error {
  constructor(message, { status = 0, param = null, hint = "" } = {}) {
    super(message);
    Object.assign(this, { status, param, hint });
  }
}

async function call(path, { method = "GET", json, form, signal } = {}) {
  const request = { method, signal };
  if (form) request.body = form;
  else if (json !== undefined)
    Object.assign(request, { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } });
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    reachable(false);
    throw new ApiError("The server cannot be reached", { hint: "Is `llrag studio` still running?" });
  }
  reachable(true);
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const problem = answer.error ?? {};
  throw new ApiError(problem.message ?? `The server answered ${response.status}`, {
    status: response.status,
    param: problem.param,
    hint: problem.hint ?? "",
  });
}

const part = encodeURIComponent;
const video = (id, rest = "") => `/v1/videos/${part(id)}${rest}`;

export const api = {
  info: () => call("/v1/llrag/info"),
  estimate: (job, signal) => call("/v1/llrag/estimate", { method: "POST", json: job, signal }),
  parseScene: (yaml, signal) => call("/v1/llrag/scene/parse", { method: "POST", json: { yaml }, signal }),
  formatScene: (scene, signal) => call("/v1/llrag/scene/format", { method: "POST", json: { scene }, signal }),

  create: job => call("/v1/videos", { method: "POST", json: job }),
  video: id => call(video(id)),
  remove: id => call(video(id), { method: "DELETE" }),
  extend: request => call(video("extensions"), { method: "POST", json: request }),
  switchPrompt: (id, prompt, cut) => call(video(id, "/switch"), { method: "POST", json: { prompt, cut } }),
  cancel: id => call(video(id, "/cancel"), { method: "POST", json: {} }),
  pause: id => call(video(id, "/pause"), { method: "POST", json: {} }),
  resume: id => call(video(id, "/resume"), { method: "POST", json: {} }),

  characters: () => call(video("characters")),
  library: () => call("/v1/llrag/library"),
  open: run => call(`/v1/llrag/library/${part(run)}/open`, { method: "POST", json: {} }),
  group: id => call(`/v1/llrag/groups/${part(id)}`),
  pick: (group, id) => call(`/v1/llrag/groups/${part(group)}/pick`, { method: "POST", json: { id } }),

  upload(name, file) {
    const form = new FormData();
    form.append("name", name);
    form.append("video", file);
    return call(video("characters"), { method: "POST", form });
  },
};

export const links = {
  character: id => `/v1/videos/characters/${part(id)}/picture`,
  live: id => video(id, "/live"),
  events: id => video(id, "/events"),
  file: id => video(id, "/content"),
  thumbnail: id => video(id, "/content?variant=thumbnail"),
  frame: (id, frame) => video(id, `/frames/${frame}.jpg`),
  exported: (id, format) => video(id, `/export?format=${part(format)}`),
};
