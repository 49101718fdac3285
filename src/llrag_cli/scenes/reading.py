"""Scenes from files and from the short form, with errors that name file, line and shot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llrag_cli.errors import UsageError, closest
from llrag_cli.files.guarded import UnreadableError, json_values, shortened
from llrag_cli.files.settings import require_kinds
from llrag_cli.files.yaml_lines import Document, parse_yaml, read_text
from llrag_cli.scenes import foreign
from llrag_cli.scenes.schema import Location, Reference, Scene, Shot

Model = TypeVar("Model", bound=BaseModel)

KIND = "scene file"
THEN = re.compile(r"\s*(?P<cut>cut\b)?\s*(?P<seconds>[\d.]+)\s*s(?:ec|econds?)?\s*:(?P<prompt>.*)", re.DOTALL)
THEN_HINT = "for example `8s: it stops and looks up` or `cut 6s: a frozen lake`"


def read_scene(path: str | Path) -> Scene:
    """The scene in a file: a scene file in YAML, or a format of another program (see ``scenes/foreign.py``).

    Relative paths in the file start at its folder, and must exist. Raises ``UsageError``.
    """
    scenes = read_scenes(path)
    if len(scenes) > 1:
        raise UsageError(
            f"`{Path(path).name}` holds {len(scenes)} scenes, but one is needed", hint="keep one line of it"
        )
    return scenes[0]


def read_scenes(path: str | Path) -> tuple[Scene, ...]:
    """All scenes of a file; only JSON lines and Infinity-RoPE's text hold more than one."""
    path = Path(path)
    text = read_text(path, kind=KIND)
    if path.suffix == ".txt":
        lines = [(_at(path, number), line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        if not lines:
            raise UsageError(f"`{path.name}` is empty", hint="for example `a fox runs[10s] | a lake[8s#]`")
        return tuple(_build(foreign.from_actions(line, where=at), at) for at, line in lines)
    if path.suffix in (".json", ".jsonl") or text.lstrip().startswith("{"):
        return _from_json(text, path)
    return (_own(parse_yaml(text, name=path.name), path),)


def scene_from_text(text: str, *, name: str = "scene") -> Scene:
    """The scene in the text of a scene file, whose paths are taken as they are; ``name`` is for errors."""
    document = parse_yaml(text, name=name)
    if not isinstance(document.content, dict):
        raise UsageError(f"`{name}`: not a scene", hint="a scene has `shots:`, each with `prompt` and `seconds`")
    return _validated(Scene, document.content, document, f"`{name}`")


def _from_json(text: str, path: Path) -> tuple[Scene, ...]:
    values = _json_values(text, path)
    if all(foreign.is_switches(value) for _, value in values):
        lines = [(_at(path, line), value) for line, value in values]
        return tuple(_build(foreign.from_switches(value, where=at), at) for at, value in lines)
    if len(values) > 1:
        line = next(line for line, value in values if not foreign.is_switches(value))
        raise UsageError(f"{_at(path, line)}: not a list of prompts", hint='a line is `{"prompts": ["...", "..."]}`')
    content, where = values[0][1], f"`{path.name}`"
    if isinstance(content, dict) and "shots" not in content:
        if isinstance(content.get("scenes"), list):
            return (_build(foreign.from_story(content, where=where), where),)
        if isinstance(content.get("prompts"), list):
            return (_build(foreign.from_scope(content, where=where), where),)
    return (_own(Document(content, _lines_of_json(text)), path),)


def _json_values(text: str, path: Path) -> list[tuple[int, Any]]:
    """The JSON values of a text, at least one, each with the line it starts on."""
    try:
        values = list(json_values(text))
    except UnreadableError as error:
        where = f"`{path.name}`" if error.line is None else _at(path, error.line)
        raise UsageError(f"{where}: {error.reason}", hint=error.hint) from None
    if not values:
        raise UsageError(f"`{path.name}` is empty", hint="write at least one value")
    return values


def _at(path: Path, line: int) -> str:
    return f"`{path.name}`, line {line}"


def _lines_of_json(text: str) -> dict[Location, int]:
    """JSON is nearly YAML; where it is not, errors name no line."""
    try:
        return parse_yaml(text.replace("\t", " "), name="").lines
    except UsageError:
        return {}


def parse_then(text: str) -> Shot:
    """A shot in the short form: ``8s: it stops and looks up``, or ``cut 6s: a frozen lake``."""
    match = THEN.fullmatch(text)
    if match is None:
        raise UsageError(f"`{shortened(text)}` is not `SECONDS: PROMPT`", hint=THEN_HINT)
    try:
        seconds = float(match["seconds"])
    except ValueError:
        raise UsageError(f"`{shortened(match['seconds'])}` is not a number of seconds", hint=THEN_HINT) from None
    shot = {"prompt": match["prompt"], "seconds": seconds, "cut": match["cut"] is not None}
    return _validated(Shot, shot, Document(None), f"`{shortened(text)}`")


def scene_from_prompts(prompt: str, seconds: float, then: Iterable[str] = ()) -> Scene:
    """A scene without a file: its first prompt, and the shots that follow in the short form."""
    first = _validated(Shot, {"prompt": prompt, "seconds": float(seconds)}, Document(None), "the first shot")
    return Scene(shots=(first, *(parse_then(text) for text in then)))


def _build(content: dict[str, Any], where: str) -> Scene:
    return _validated(Scene, content, Document(content), where)


def _own(document: Document, path: Path) -> Scene:
    where = f"`{path.name}`"
    if not isinstance(document.content, dict):
        raise UsageError(f"{where}: not a scene", hint="a scene file has `shots:`, each with `prompt` and `seconds`")
    scene = _validated(Scene, document.content, document, where)
    return _located(scene, document, path.parent, where)


def _located(scene: Scene, document: Document, folder: Path, where: str) -> Scene:
    """The scene with its paths made absolute; each must exist."""

    def absolute(path: Path | None, location: Location, *, folders: bool = False) -> Path | None:
        if path is None:
            return None
        found = (folder / path).absolute()
        if not _exists(found, folders=folders):
            sentence = f"{_where(where, document, location)}: `{path}` does not exist"
            raise UsageError(sentence, hint=f"paths start at the folder of the scene file: `{folder.absolute()}`")
        return found

    def opened(part: Model, location: Location) -> Model:
        return part.model_copy(
            update={key: absolute(getattr(part, key), (*location, key)) for key in ("image", "video")}
        )

    references: dict[str, Reference] = {}
    for name, reference in scene.references.items():
        reference_path = absolute(reference.path, ("references", name), folders=True)
        references[name] = reference.model_copy(update={"path": reference_path})
    shots = tuple(opened(shot, ("shots", index)) for index, shot in enumerate(scene.shots))
    changes: dict[str, Any] = {"references": references, "shots": shots}
    if scene.backbone is not None and scene.backbone.endswith((".yaml", ".yml")):
        changes["backbone"] = str(absolute(Path(scene.backbone).expanduser(), ("backbone",)))
    return opened(scene, ()).model_copy(update=changes)


def _exists(path: Path, *, folders: bool) -> bool:
    try:
        return path.is_file() or (folders and path.is_dir())
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _validated(model: type[Model], content: dict[str, Any], document: Document, where: str) -> Model:
    try:
        require_kinds(model, content)
        return model.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first = errors[0]
        if first["type"] == "missing":  # perhaps it is there under a misspelt name
            beside = (each for each in errors if each["loc"][:-1] == first["loc"][:-1])
            first = next((each for each in beside if each["type"] == "extra_forbidden"), first)
        sentence, hint = _sentence(first, model)
        raise UsageError(f"{_where(where, document, first['loc'])}: {sentence}", hint=hint) from None


def _where(where: str, document: Document, location: Sequence[str | int]) -> str:
    """``file, line 12, shot 2`` or ``file, line 4, reference `mara```."""
    line = document.line(location)
    where += f", line {line}" if line else ""
    if len(location) > 1 and location[0] == "shots":
        return f"{where}, shot {int(location[1]) + 1}"
    if len(location) > 1 and location[0] == "references":
        return f"{where}, reference `{location[1]}`"
    return where


def _sentence(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, and a hint."""
    location, kind, value = error["loc"], error["type"], error["input"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "scene":
        return context["problem"], context["hint"] or "see the reference of the scene file"
    owner, keys = _owner(location, model)
    key = str(keys[0])[:80] if keys else ""
    if kind == "extra_forbidden":
        return f"unknown key `{key}`", closest(key, owner.model_fields)
    if location in ((), ("shots",)) and (not value or kind == "too_short"):
        return "a scene needs at least one shot", "write `shots:`, each with `prompt` and `seconds`"
    if not keys:
        name = "shot" if owner is Shot else owner.__name__.lower()
        return f"a {name} must be a mapping of keys to values", _keys(owner)
    field = owner.model_fields[key]
    hint = f"`{key}`: {field.description}"
    if kind == "missing":
        return f"`{key}` is missing", hint
    written = str(value).lower() if isinstance(value, bool) else str(value)
    shown = f", not `{written[:80]}`" if isinstance(value, str | int | float) else ""
    if kind in ("too_long", "string_too_long"):
        return (
            f"`{key}` has more than {context['max_length']} {'entries' if kind == 'too_long' else 'characters'}",
            hint,
        )
    if kind == "string_type":
        return f"`{key}` must be text{shown}", "put it in quotes" if shown else hint
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"`{key}` must be a mapping of keys to values{shown}", hint
    if kind in ("tuple_type", "list_type"):
        return f"`{key}` must be a list{shown}", hint
    expected = error["msg"].removeprefix("Input should be ")
    for long, plain in _PLAIN:
        expected = expected.replace(long, plain)
    if not error["msg"].startswith("Input should be "):  # not about what the input should be
        return f"`{key}`: {error['msg'][0].lower()}{error['msg'][1:]}{shown}", hint
    return f"`{key}` must be {expected}{shown}", hint


_PLAIN = (
    ("a valid boolean", "`true` or `false`"),
    ("a valid integer", "a whole number"),
    ("a valid ", "a "),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "more than"),
    ("'", "`"),
)


def _owner(location: Sequence[str | int], model: type[BaseModel]) -> tuple[type[BaseModel], Sequence[str | int]]:
    """The model that a location lies in, and the rest of the location inside it."""
    if location[:1] == ("shots",) and len(location) > 1:
        return Shot, location[2:]
    if location[:1] == ("references",) and len(location) > 1:
        return Reference, location[2:]
    return model, location


def _keys(owner: type[BaseModel]) -> str:
    return f"its keys are {', '.join(f'`{name}`' for name in owner.model_fields)}"
