"""The commented example of a scene file, which runs on the embedded model, and the scene of ``llrag demo``."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.scenes.reading import read_scene
from llrag_cli.scenes.schema import Scene

EXAMPLE = Path(__file__).with_name("example.yaml")


def example_scene() -> str:
    """The text of a scene file with an arrival, a switch, a cut and a return."""
    return EXAMPLE.read_text(encoding="utf-8")


def demo_scene() -> Scene:
    """The example without its switch: a place, a cut to another one, and the return."""
    scene = read_scene(EXAMPLE)
    shots = [shot.model_dump() for number, shot in enumerate(scene.shots) if number == 0 or shot.cut]
    return Scene.model_validate(scene.model_dump() | {"shots": shots})
