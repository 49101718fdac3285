"""The folder of one run: the video, what it was made from, and what was recalled when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.rollout import Block


class RunFolder:
    """``video.mp4``, ``run.json`` (whose ``status`` tells whether it is complete) and ``memory.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = path / "video.mp4"
        self.record = path / "run.json"
        self.memory = path / "memory.jsonl"

    def create(self, *, force: bool) -> None:
        """Make the folder; an existing run is replaced only with ``force``, other files are never touched."""
        ours = (self.video, self.record, self.memory)
        try:
            if self.path.exists() and any(self.path.iterdir()) and not force:
                raise UsageError(
                    f"`{self.path}` exists and is not empty",
                    hint="choose another `--out`, or add `--force` to replace the run in it",
                )
            self.path.mkdir(parents=True, exist_ok=True)
            for file in ours:
                file.unlink(missing_ok=True)
            self.memory.touch()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(
                f"`{self.path}` cannot be written: {reason}", hint="choose another folder with `--out`"
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace ``run.json`` in one step, so that it is never half there."""
        partial = self.record.with_suffix(".json.partial")
        try:
            partial.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(self.record)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise LlragError(
                f"`{self.record}` could not be written: {(error.strerror or str(error)).lower()}",
                hint="is the disk full, or the folder gone?",
            ) from error

    def log(self, block: Block) -> None:
        """Append what a block recalled, one line of JSON."""
        line = {
            "block": block.index,
            "frame": block.start,
            "recalled": block.recalled[0] if block.recalled else [],
            "similarities": [round(value, 6) for value in block.similarities[0]] if block.similarities else [],
        }
        try:
            with self.memory.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise LlragError(
                f"`{self.memory}` could not be written: {(error.strerror or str(error)).lower()}",
                hint="is the disk full, or the folder gone?",
            ) from error


def unused_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2`` and so on if that is taken."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
