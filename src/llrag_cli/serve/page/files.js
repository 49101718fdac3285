// Files that are dragged onto the page.

export function holdsFiles(event) {
  return [...event.dataTransfer.types].includes("Files");
}

/** Pictures and clips among the files of a drop or of a file field. */
export function mediaOf(files) {
  return [...files].filter(file => /^(image|video)\//.test(file.type));
}

export function filesOf(event) {
  return [...event.dataTransfer.files];
}
