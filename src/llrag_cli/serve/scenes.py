"""Scenes between YAML, as in a scene file, and JSON, as the page edits them: only the keys that are written."""

from __future__ import annotations

import re
from typing import Any

import yaml

from llrag_cli.errors import UsageError
from llrag_cli.scenes.reading import scene_from_text
from llrag_cli.scenes.schema import Scene, Shot

PLACE = re.compile(r"`scene`(?:, line (\d+))?(?:, (shot \d+|reference `[^`]*`))?: (.*)", re.DOTALL)


def parse_scene(text: str) -> dict[str, Any]:
    """The ``scene``, or what is wrong with it: a ``problem`` with its line.

    That is an answer and no error, because the page asks while somebody types.
    """
    try:
        scene = scene_from_text(text)
    except UsageError as error:
        match = PLACE.fullmatch(error.problem)
        line, part, sentence = match.groups() if match else (None, None, error.problem)
        message = f"{part}: {sentence}" if part else sentence
        return {"problem": {"message": message, "hint": error.hint, "line": int(line) if line else None}}
    return {"scene": scene.model_dump(mode="json", exclude_unset=True)}


def format_scene(content: dict[str, Any]) -> str:
    """The YAML of a scene, its keys in the order of the documentation. Nothing is checked."""
    ordered = _ordered(content, Scene)
    shots = ordered.get("shots")
    if isinstance(shots, list):
        ordered["shots"] = [_ordered(shot, Shot) if isinstance(shot, dict) else shot for shot in shots]
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=100)


def scene_text(scene: Scene) -> str:
    """A scene as the text of a scene file; what is as by default is left out."""
    return format_scene(scene.model_dump(mode="json", exclude_defaults=True))


def _ordered(content: dict[str, Any], model: type[Scene] | type[Shot]) -> dict[str, Any]:
    known = [key for key in model.model_fields if key in content]
    return {key: content[key] for key in (*known, *(key for key in content if key not in known))}
