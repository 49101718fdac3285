"""Let every single write of a run fail, then go on with it: ``python benchmarks/faults.py``.

In turn, each write, the second half of each write, and each flush to the disk is the first that a full disk refuses.
Every time the run must end in one sentence, and going on must give the files of a run that met no fault. Prints how
often that was so, and exits with 1 if it was not once.
"""

from __future__ import annotations

import collections
import errno
import filecmp
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from llrag_cli import LlragError, Pipeline, RunFolder, load_config, make_video

PROMPT = "a red circle and a white cross pass by on a striped blue wall"
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


class FaultyDisk:
    """The system's write and fsync, of which some may fail."""

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.fault: tuple[str, int, bool] | None = None  # which call, from which number on, and whether it does half
        self._real: dict[str, Callable[..., Any]] = {"write": os.write, "fsync": os.fsync}

    def call(self, name: str, number: int, *data: Any) -> Any:
        """Do it, or fail as a full disk does."""
        at = self.calls[name]
        self.calls[name] += 1
        if self.fault is not None and self.fault[0] == name and at >= self.fault[1]:
            if self.fault[2] and at == self.fault[1]:
                return self._real[name](number, data[0][: len(data[0]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real[name](number, *data)


def main() -> None:
    """Try every fault."""
    pipeline = Pipeline.load(
        load_config("tiny", method="retrieval", settings=["sampler.steps=[1000, 500]"]), device="cpu"
    )
    disk = FaultyDisk()
    results: collections.Counter[str] = collections.Counter()

    def make(folder: RunFolder) -> None:
        make_video(pipeline, PROMPT, folder, seconds=13, existing="resume")

    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch("llrag_cli.files.durable.os.write", lambda *given: disk.call("write", *given)),
        mock.patch("llrag_cli.files.durable.os.fsync", lambda *given: disk.call("fsync", *given)),
    ):
        whole = RunFolder(Path(scratch) / "whole")
        make(whole)
        total = dict(disk.calls)
        for name, half in (("write", False), ("write", True), ("fsync", False)):
            for at in range(total[name]):
                folder = RunFolder(Path(scratch) / "run")
                disk.calls.clear()
                disk.fault = (name, at, half)
                said = ""
                try:
                    make(folder)
                except LlragError as error:
                    said = error.problem
                disk.fault = None
                make(folder)
                same = all(filecmp.cmp(folder.path / file, whole.path / file, shallow=False) for file in FILES)
                kind = f"{'half a ' if half else ''}{name}"
                fine = same and "no space left on device" in said
                results[f"{kind}: {'said, and went on to the same files' if fine else 'WRONG'}"] += 1
                if not fine:
                    typer.echo(f"{kind} {at}: said {said!r}, same {same}", err=True)
                shutil.rmtree(folder.path)
    for what, count in sorted(results.items()):
        typer.echo(f"{count:4d} x {what}")
    raise SystemExit(any("WRONG" in what for what in results))


if __name__ == "__main__":
    main()
