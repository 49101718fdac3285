"""The folder of one run: the video, what it was made from, and what was recalled when."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llrag_cli.config import MemoryConfig
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.durable import replace_text

LOCKS = ("run.lock", "run.owner")


class RunFolder:
    """``video.mp4``, ``run.json`` (whose ``status`` tells whether it is complete), ``memory.jsonl``, and what it
    takes to go on: ``latents.safetensors`` and ``commits.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = path / "video.mp4"
        self.record = path / "run.json"
        self.memory = path / "memory.jsonl"
        self.latents = path / "latents.safetensors"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Have the folder, made if need be, to oneself; the system lets it go with the process, however that ends."""
        lock, owner = FileLock(self.path / "run.lock"), self.path / "run.owner"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        except Timeout:
            who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
            raise UsageError(f"{who} is writing `{self.path}`", hint="wait for it, or choose another `--out`") from None
        except OSError as error:
            lock.release()
            reason = (error.strerror or str(error)).lower()
            raise UsageError(
                f"`{self.path}` cannot be written: {reason}", hint="choose another folder with `--out`"
            ) from error
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def require_free(self) -> None:
        """Raise an error if there is a run in the folder, or something else."""
        if not self.path.is_dir() or all(path.name in LOCKS for path in self.path.iterdir()):
            return
        if self.record.exists():
            raise UsageError(
                f"`{self.path}` holds a run",
                hint=f"`llrag generate --resume {self.path}` goes on with it; or choose another `--out`, "
                "or add `--force` to replace it",
            )
        raise UsageError(
            f"`{self.path}` exists and is not empty",
            hint="choose another `--out`, or add `--force`: files that are not a run's are left alone",
        )

    def clear(self) -> None:
        """Remove the files of a run, and no others."""
        for file in (self.record, self.video, self.memory, self.latents, self.path / "commits.jsonl"):
            file.unlink(missing_ok=True)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace ``run.json`` in one step, so that it is never half there."""
        replace_text(self.record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def read_record(self) -> dict[str, Any]:
        """What ``run.json`` says; raises ``LlragError`` where there is no run, or it cannot be read."""
        if not self.path.is_dir():
            raise UsageError(f"there is no run folder `{self.path}`", hint="give the folder that `llrag generate` made")
        if not self.record.is_file():
            raise UsageError(f"`{self.path}` is no run folder: it has no run.json", hint="`llrag generate` makes one")
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            MemoryConfig.model_validate(record["config"]["memory"])
            for name, value in (("fps", record["fps"]), ("latent_frames", record["latent_frames"])):
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"`{name}` is {value!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(self.record, error) from None
        assert isinstance(record, dict)
        return record


@dataclass(frozen=True)
class BlockMemory:
    """What one block retrieved: its own first latent frame, the retrieved frames, most similar first, and cosines."""

    frame: int
    retrieved: tuple[int, ...]
    similarities: tuple[float, ...]


def read_run(folder: RunFolder) -> tuple[dict[str, Any], list[BlockMemory]]:
    """The record of a run and its memory log; a folder that holds none, or a damaged one, is an error.

    A last line that was cut off when a run was killed is left out.
    """
    record, file = folder.read_record(), folder.memory
    if not file.is_file():
        raise UsageError(f"`{folder.path}` is no run folder: it has no {file.name}", hint="`llrag generate` makes one")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines[:-1]]
        blocks = [
            BlockMemory(
                int(entry["frame"]), tuple(map(int, entry["recalled"])), tuple(map(float, entry["similarities"]))
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(file, error) from None
    return record, blocks


def _unreadable(file: Path, error: Exception) -> LlragError:
    return LlragError(
        f"`{file}` cannot be read: {str(error).splitlines()[0]}", hint="it is damaged, or not made by llrag"
    )


def unused_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2`` and so on if that is taken."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path
