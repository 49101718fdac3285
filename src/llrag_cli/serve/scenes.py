"""Scenes between YAML, as in a scene file, and JSON, as the page edits them."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from pydantic import ValidationError

from llrag_cli.errors import UsageError
from llrag_cli.files.records import first_problem
from llrag_cli.scenes.reading import scene_from_text
from llrag_cli.scenes.schema import Scene
from llrag_cli.serve.problems import ApiError

OWN = ("title", "backbone", "seed", "style", "memory", "takes", "set", "image", "video")


def parse_scene(text: str) -> dict[str, Any]:
    """The shots of a scene, and what they share. Raises ``ApiError``, whose parameter is a line if it is known."""
    try:
        scene = scene_from_text(text)
    except UsageError as error:
        line = re.search(r", line (\d+)", error.problem)
        raise ApiError(
            400, error.problem, code="invalid_scene", param=line[1] if line else None, hint=error.hint
        ) from None
    content = json.loads(scene.model_dump_json())
    shots = []
    for index, (shot, name) in enumerate(zip(content["shots"], scene.names, strict=True)):
        remember = shot["remember"]
        references = [each for each in scene.references if remember == "all" or each in remember]
        change = "cut" if shot["cut"] else "switch" if index else "start"
        shots.append({**shot, "name": name, "change": change, "references": references})
    return {name: content[name] for name in OWN} | {"references": content["references"], "shots": shots}


def format_scene(content: dict[str, Any]) -> str:
    """A scene as YAML. Raises ``ApiError``.

    Of a shot, ``change`` is as ``cut``; ``references`` count if there is no ``remember``: the shot may then retrieve
    from these alone, and from all earlier shots.
    """
    shots: list[dict[str, Any]] = []
    earlier: list[str] = []
    names = list(content.get("references") or {})
    for number, given in enumerate(content.get("shots") or (), start=1):
        if not isinstance(given, dict):
            raise ApiError(400, "a shot is not an object", code="invalid_scene", param="shots")
        shot = {name: value for name, value in given.items() if value is not None}
        if (change := shot.pop("change", None)) is not None:
            shot["cut"] = change == "cut"
        references = shot.pop("references", None)
        if references is not None and "remember" not in shot and sorted(references) != sorted(names):
            shot["remember"] = [*earlier, *references] or "none"
        if isinstance(shot.get("seconds"), int):
            shot["seconds"] = float(shot["seconds"])
        if shot.get("name") == f"shot-{number}":
            del shot["name"]
        shots.append(shot)
        earlier.append(shot.get("name") or f"shot-{number}")
    try:
        scene = Scene.model_validate({**{k: v for k, v in content.items() if v is not None}, "shots": shots})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        raise ApiError(
            400, str(context.get("problem", first_problem(error))), code="invalid_scene",
            param=".".join(map(str, first["loc"]))[:80] or None, hint=str(context.get("hint", "")),
        ) from None  # fmt: skip
    return scene_text(scene)


def scene_text(scene: Scene) -> str:
    """A scene as the text of a scene file; what is as by default is left out."""
    plain = json.loads(scene.model_dump_json(exclude_defaults=True))
    order = ("title", "backbone", "seed", "style", "memory", "takes", "set", "image", "video", "references", "shots")
    ordered = {name: plain[name] for name in order if name in plain}
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100)
