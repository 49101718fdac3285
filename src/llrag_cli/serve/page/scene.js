// The scene as data, with the keys of a scene file. Functions return new scenes; none changes its argument.

export const SHORTEST = 0.5; // seconds of a shot, and the step of the handles

/** A scene of one empty shot. */
export function newScene(model, seconds) {
  return { backbone: model, shots: [{ prompt: "", seconds }] };
}

export function totalSeconds(scene) {
  return scene.shots.reduce((sum, shot) => sum + (Number(shot.seconds) || 0), 0);
}

/** What a shot is called in `remember`: its name, or `shot-N`. */
export function nameOf(scene, index) {
  return scene.shots[index].name || `shot-${index + 1}`;
}

/** Changes of keys; an undefined, empty or default value removes the key. */
function changed(object, changes) {
  const next = { ...object, ...changes };
  for (const [key, value] of Object.entries(next)) {
    const empty = value === undefined || value === "" || value === false || (key === "remember" && value === "all");
    if (empty && key !== "prompt") delete next[key];
  }
  return next;
}

export function withKeys(scene, changes) {
  return changed(scene, changes);
}

export function withShot(scene, index, changes) {
  const shots = scene.shots.map((shot, position) => (position === index ? changed(shot, changes) : shot));
  return { ...scene, shots };
}

export function addShot(scene) {
  const seconds = scene.shots.at(-1).seconds;
  return { ...scene, shots: [...scene.shots, { prompt: "", seconds }] };
}

/** Without a shot, and without its name in what others remember. */
export function withoutShot(scene, index) {
  const shots = scene.shots.filter((_, position) => position !== index);
  return pruned({ ...scene, shots });
}

/** With a shot moved by one place, up (-1) or down (1). */
export function movedShot(scene, index, by) {
  const shots = [...scene.shots];
  const [shot] = shots.splice(index, 1);
  shots.splice(index + by, 0, shot);
  return pruned({ ...scene, shots });
}

/** With a cut or a switch before a shot; what only a cut can have goes with it. */
export function withChange(scene, index, cut) {
  const { sink, image, video, recache, ...shot } = scene.shots[index];
  const kept = cut ? { sink, image, video } : { recache };
  const shots = scene.shots.map((each, position) =>
    position === index ? changed({ ...shot, ...kept }, { cut }) : each,
  );
  return { ...scene, shots };
}

/** With a picture or clip that opens a shot {id, llrag: {kind}}, or with none. */
export function withOpening(scene, index, upload) {
  const key = upload?.llrag.kind === "clip" ? "video" : "image";
  const next = withShot(scene, index, { image: undefined, video: undefined, ...(upload ? { [key]: upload.id } : {}) });
  return index ? next : changed(next, { image: undefined, video: undefined }); // the scene's are those of the first shot
}

/** Names that a shot can remember: earlier shots and all references. */
export function rememberable(scene, index) {
  const earlier = scene.shots.slice(0, index).map((_, position) => nameOf(scene, position));
  return [...earlier, ...Object.keys(scene.references ?? {})];
}

export function withReference(scene, name, reference) {
  return { ...scene, references: { ...scene.references, [name]: changed(reference, {}) } };
}

export function withoutReference(scene, name) {
  const { [name]: _, ...references } = scene.references;
  const next = { ...scene, references };
  if (!Object.keys(references).length) delete next.references;
  return pruned(next);
}

/** With another name for a reference, where it stands in the scene too. */
export function renamedReference(scene, from, to) {
  const references = Object.fromEntries(
    Object.entries(scene.references).map(([name, value]) => [name === from ? to : name, value]),
  );
  return renamed({ ...scene, references }, from, to);
}

/** With another name for a shot, in what others remember too; an empty one is its number again. */
export function renamedShot(scene, index, name) {
  const next = withShot(scene, index, { name });
  return renamed(next, nameOf(scene, index), nameOf(next, index));
}

/** With another name in what shots remember. */
function renamed(scene, from, to) {
  const shots = scene.shots.map(shot =>
    Array.isArray(shot.remember) ? { ...shot, remember: shot.remember.map(name => (name === from ? to : name)) } : shot,
  );
  return { ...scene, shots };
}

/** A name that no shot or reference has yet, made from a file's name. */
export function freeName(scene, file) {
  const stem =
    file
      .replace(/\.[^.]*$/, "")
      .replace(/[^\p{L}\p{N}_-]+/gu, "-")
      .replace(/^[-_]+|[-_]+$/g, "")
      .slice(0, 40) || "reference";
  const taken = new Set(["all", "none", ...rememberable(scene, scene.shots.length)]);
  let name = stem;
  for (let number = 2; taken.has(name); number += 1) name = `${stem}-${number}`;
  return name;
}

function pruned(scene) {
  const shots = scene.shots.map((shot, index) => {
    if (!Array.isArray(shot.remember)) return shot;
    const names = rememberable(scene, index);
    const remember = shot.remember.filter(name => names.includes(name));
    return changed(shot, { remember: remember.length ? remember : "none" });
  });
  return { ...scene, shots };
}

/** Whether a scene is no more than a prompt with a length. */
export function isPrompt(scene) {
  const keys = Object.keys(scene).filter(key => !["backbone", "seed", "memory", "takes", "shots"].includes(key));
  return (
    scene.shots.length === 1 &&
    !keys.length &&
    Object.keys(scene.shots[0]).every(key => ["prompt", "seconds"].includes(key))
  );
}

/** The request that makes a video of a scene, `settings` added (decoder, size, compare). */
export async function requestOf(scene, settings, format) {
  const { backbone: model, seed, memory, takes, shots } = scene;
  const single = settings.compare ? undefined : takes; // a comparison is of one seed
  const fields = Object.entries({ model, seed, memory, takes: single, ...settings });
  const given = Object.fromEntries(fields.filter(([, value]) => value !== undefined && value !== ""));
  if (isPrompt(scene)) return { prompt: shots[0].prompt, seconds: shots[0].seconds, ...given };
  return { scene: await format(scene), ...given };
}
