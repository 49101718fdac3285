"""The folder of one run: the video, what it was made from, and what was recalled when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llrag_cli.config import MemoryConfig
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


@dataclass(frozen=True)
class Recalled:
    """What one block recalled: its first latent frame, the frames it saw again, most similar first, and cosines."""

    frame: int
    recalled: tuple[int, ...]
    similarities: tuple[float, ...]


def read_run(folder: RunFolder) -> tuple[dict[str, Any], list[Recalled]]:
    """The record of a run and its memory log; a folder that holds none, or a damaged one, is an error.

    A last line that was cut off when a run was killed is left out.
    """
    if not folder.path.is_dir():
        raise UsageError(f"there is no run folder `{folder.path}`", hint="give the folder that `llrag generate` made")
    for file in (folder.record, folder.memory):
        if not file.is_file():
            raise UsageError(
                f"`{folder.path}` is no run folder: it has no {file.name}", hint="`llrag generate` makes one"
            )
    file = folder.record
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        MemoryConfig.model_validate(record["config"]["memory"])
        for name, value in (("fps", record["fps"]), ("latent_frames", record["latent_frames"])):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}")
        file = folder.memory
        lines = file.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines[:-1]]
        blocks = [
            Recalled(int(entry["frame"]), tuple(map(int, entry["recalled"])), tuple(map(float, entry["similarities"])))
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LlragError(
            f"`{file}` cannot be read: {str(error).splitlines()[0]}", hint="it is damaged, or not made by llrag"
        ) from None
    return record, blocks


def unused_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2`` and so on if that is taken."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
