"""An ffmpeg that hangs or is killed ends in a sentence, in time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llrag_cli.errors import LlragError
from llrag_cli.files import ffmpeg as module
from llrag_cli.files.clip import probe_clip
from llrag_cli.runs.video import SegmentedVideo, VideoWriter, open_video

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops processes by signals")
FRAMES = torch.rand(8, 3, 128, 128) * 2 - 1  # noise: more than a pipe holds


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    monkeypatch.setattr(module, "TICK", 0.05)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The ffmpegs that are watched; they end with the test."""
    found: list[int] = []
    begin = module.Watch.__init__

    def recorded(watch: module.Watch, process: module.subprocess.Popen[bytes]) -> None:
        found.append(process.pid)
        begin(watch, process)

    monkeypatch.setattr(module.Watch, "__init__", recorded)
    yield found
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def video(path: Path) -> Path:
    writer = VideoWriter(path, fps=8)
    for _ in range(4):
        writer.write(FRAMES)
    writer.close()
    return path


@pytest.mark.parametrize(
    ("number", "reason", "hint"),
    [
        (signal.SIGSTOP, r"ffmpeg did not respond for 0\.2 seconds", "what was written before is kept; were memory"),
        (signal.SIGKILL, "ffmpeg was killed by signal 9", "what was written before is kept; were memory"),
    ],
)
@pytest.mark.parametrize("closing", [False, True])
def test_while_a_video_is_written(
    tmp_path: Path, processes: list[int], number: signal.Signals, reason: str, hint: str, closing: bool
) -> None:
    writer = SegmentedVideo(tmp_path / "video.mp4", fps=8, blocks=100)
    writer.write(FRAMES[:1])
    os.kill(processes[0], number)
    with pytest.raises(LlragError, match=rf"video\.mp4` could not be written: {reason}$") as caught:
        if closing:
            writer.close()
        for _ in range(20):
            writer.write(FRAMES)
    assert caught.value.hint.startswith(hint)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSTOP, r"ffmpeg did not respond for 0\.2 seconds"),
        (signal.SIGKILL, "ffmpeg was killed by signal 9"),
    ],
)
def test_while_a_video_is_read(tmp_path: Path, processes: list[int], number: signal.Signals, reason: str) -> None:
    opened = open_video(video(tmp_path / "video.mp4"))
    processes[:] = processes[-1:]
    next(opened.frames)
    os.kill(processes[0], number)
    with pytest.raises(LlragError, match=rf"video\.mp4` could not be read: {reason}$"):
        list(opened.frames)


def test_who_is_not_waited_for_may_take_its_time(tmp_path: Path, processes: list[int]) -> None:
    opened = open_video(video(tmp_path / "video.mp4"))
    next(opened.frames)
    os.kill(processes[-1], signal.SIGSTOP)
    time.sleep(0.4)
    os.kill(processes[-1], signal.SIGCONT)
    assert len(list(opened.frames)) == 31


def test_one_that_does_not_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = video(tmp_path / "clip.mp4")
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(module, "ffmpeg", lambda: str(program))
    monkeypatch.setattr(module, "SECONDS_PER_MEGABYTE", 0)
    with pytest.raises(LlragError, match=r"ffmpeg did not come to the end of `.*clip\.mp4` within 0 seconds"):
        probe_clip(clip)


def test_a_video_that_is_no_part_of_a_run(tmp_path: Path, processes: list[int]) -> None:
    writer = VideoWriter(tmp_path / "preview.mp4", fps=8)
    writer.write(FRAMES[:1])
    os.kill(processes[0], signal.SIGKILL)
    with pytest.raises(LlragError, match=r"preview\.mp4` could not be written: ffmpeg was killed by signal 9"):
        writer.close()
