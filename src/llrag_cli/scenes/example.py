"""The commented example of a scene file, which runs on the embedded model."""

from __future__ import annotations

from pathlib import Path


def example_scene() -> str:
    """The text of a scene file with an arrival, a switch, a cut and a return."""
    return Path(__file__).with_name("example.yaml").read_text(encoding="utf-8")
