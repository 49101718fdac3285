// Pictures and clips that were uploaded, now or on an earlier visit: the server calls them characters.

import { ApiError, api, links } from "./api.js";
import { mediaOf } from "./files.js";
import { announce, complain } from "./notices.js";

export class Uploads extends EventTarget {
  list = []; // the newest first: {id, name, llrag: {kind}}, where the kind is `picture` or `clip`
  #previews = new Map(); // id -> address of the picture in this browser

  /** Ask the server what was uploaded before. */
  async load() {
    try {
      this.#take((await api.characters()).data);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // there is nothing to choose from then
    }
  }

  /** Upload files, and call `taken(upload)` with each. */
  async send(files, taken) {
    const media = mediaOf(files);
    if (media.length < files.length) complain(new ApiError("Only pictures and clips can be used"));
    for (const file of media) {
      try {
        const upload = await api.upload(file.name.replace(/\.[^.]*$/, "") || file.name, file);
        if (file.type.startsWith("image/")) this.#previews.set(upload.id, URL.createObjectURL(file));
        this.#take([upload, ...this.list]);
        taken(upload);
        announce(`${upload.name} was uploaded`);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        complain(error);
      }
    }
  }

  /** The address of a picture of an upload, or of a video. */
  picture(id) {
    return this.#previews.get(id) ?? (id.startsWith("char_") ? links.character(id) : links.thumbnail(id));
  }

  named(id) {
    return this.list.find(upload => upload.id === id);
  }

  #take(list) {
    this.list = list;
    this.dispatchEvent(new Event("change"));
  }
}

/** A list of uploads to choose one from; `chosen(upload)` is called, and the list shows its title again. */
export function uploadChoice(uploads, title, chosen) {
  const list = document.createElement("select");
  list.setAttribute("aria-label", title);
  list.addEventListener("change", () => {
    const upload = uploads.named(list.value);
    list.value = "";
    if (upload) chosen(upload);
  });
  const show = () => {
    list.replaceChildren(new Option(title, ""), ...uploads.list.map(({ id, name }) => new Option(name, id)));
    list.hidden = !uploads.list.length;
  };
  uploads.addEventListener("change", show);
  show();
  return list;
}
