"""Let every single write of a run fail, then resume it: ``python benchmarks/faults.py``.

In turn, each write, the second half of each write, and each fsync is the first one that a full disk refuses. Every
time the run must end with an error that names the cause, and resuming it must produce the same files as a run without
a fault. Prints how often that was so, and exits with 1 if it ever was not.
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
from typing import Annotated, Any
from unittest import mock

import typer

from llrag_cli import LlragError, Pipeline, RunFolder, load_config, make_video

PROMPT = "a red circle and a white cross pass by on a striped blue wall"
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


class FaultyDisk:
    """The system's write and fsync, of which some may fail."""

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.fault: tuple[str, int, bool] | None = None  # which call, its number, and whether half is written
        self._real: dict[str, Callable[..., Any]] = {"write": os.write, "fsync": os.fsync}

    def call(self, name: str, number: int, *data: Any) -> Any:
        """Make the call, or fail as on a full disk."""
        index = self.calls[name]
        self.calls[name] += 1
        if self.fault is not None and self.fault[0] == name and index >= self.fault[1]:
            if self.fault[2] and index == self.fault[1]:
                return self._real[name](number, data[0][: len(data[0]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._real[name](number, *data)


def main(
    seconds: Annotated[float, typer.Option(help="Length of the video")] = 13.0,
    every: Annotated[int, typer.Option(help="Try one of so many calls")] = 1,
) -> None:
    """Try every fault."""
    pipeline = Pipeline.load(load_config("tiny", settings=["sampler.steps=[1000, 500]"]), device="cpu")
    disk = FaultyDisk()
    results: collections.Counter[str] = collections.Counter()

    def make(folder: RunFolder) -> None:
        make_video(pipeline, PROMPT, folder, seconds=seconds, existing="resume")

    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch("llrag_cli.files.durable.os.write", lambda *arguments: disk.call("write", *arguments)),
        mock.patch("llrag_cli.files.durable.os.fsync", lambda *arguments: disk.call("fsync", *arguments)),
    ):
        whole = RunFolder(Path(scratch) / "whole")
        make(whole)
        total = dict(disk.calls)
        for name, half in (("write", False), ("write", True), ("fsync", False)):
            for index in range(0, total[name], every):
                folder = RunFolder(Path(scratch) / "run")
                disk.calls.clear()
                disk.fault = (name, index, half)
                problem = ""
                try:
                    make(folder)
                except LlragError as error:
                    problem = error.problem
                disk.fault = None
                make(folder)
                same = all(filecmp.cmp(folder.path / file, whole.path / file, shallow=False) for file in FILES)
                kind = f"{'half a ' if half else ''}{name}"
                correct = same and "no space left on device" in problem
                results[f"{kind}: {'reported, and resumed to the same files' if correct else 'WRONG'}"] += 1
                if not correct:
                    typer.echo(f"{kind} {index}: reported {problem!r}, same files: {same}", err=True)
                shutil.rmtree(folder.path)
    for outcome, count in sorted(results.items()):
        typer.echo(f"{count:4d} x {outcome}")
    raise SystemExit(any("WRONG" in outcome for outcome in results))


if __name__ == "__main__":
    typer.run(main)
