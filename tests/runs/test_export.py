"""Exported shots have exactly their frames, chapters their times, and the timeline is what an editor reads."""

from __future__ import annotations

import builtins
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Llrag
from llrag_cli.errors import ExportFolderError, LlragError, UsageError
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.runs import edit, export
from llrag_cli.runs.edit import write_otio
from llrag_cli.runs.export import (
    MANIFEST,
    claim_folder,
    count_frames,
    export_chapters,
    export_shots,
    shot_files,
)
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import SegmentedVideo, open_video, read_video
from llrag_cli.scenes.timeline import ShotSpan, Timeline, next_shot
from runs.records import record_of

BITS, FPS = 8, 16


def numbered(start: int, stop: int) -> Tensor:
    """Frames [T, 3, 32, 64] in [-1, 1] that show their number as black and white stripes, the lowest bit first."""
    numbers = torch.arange(start, stop)
    bits = (numbers[:, None] >> torch.arange(BITS)) & 1  # [T, 8]
    return (2.0 * bits - 1)[:, None, None, :].repeat_interleave(8, dim=3).expand(-1, 3, 32, -1)


def numbers_of(video: Path) -> list[int]:
    """The numbers that the frames of a video show."""
    stripes = read_video(video).mean(dim=(1, 2)).unflatten(1, (BITS, 8)).mean(dim=2) > 0.5  # [T, 8]
    return [sum(1 << bit for bit, white in enumerate(frame) if white) for frame in stripes.tolist()]


def write_run_video(path: Path, frames: int, *, fps: int = FPS) -> Path:
    """A video as runs write it, in fragments."""
    video = SegmentedVideo(path, fps=fps, blocks=2)
    for start in range(0, frames, 12):
        video.write(numbered(start, min(start + 12, frames)))
    video.close()
    return path


def timeline_of(*shots: tuple[str, int], fps: int = FPS) -> Timeline:
    """Shots with so many blocks each."""
    spans, start = [], 0
    for name, blocks in shots:
        kind: Any = "cut" if start else "start"
        spans.append(
            ShotSpan(
                name=name,
                prompt=f"a prompt of {name}",
                start=start,
                stop=start + blocks,
                kind=kind,
                remember=("arrival",) if start else "all",
                sink=shots[0][0],
                seed=None if start else 7,
            )
        )
        start += blocks
    return Timeline(frames_per_block=3, fps=fps, shots=tuple(spans))


SHOTS = timeline_of(("arrival", 4), ("shot-2", 1), ("rain, close", 5))


@pytest.mark.parametrize("fps", [8, 16, 24])
def test_shots_are_cut_to_the_frame(tmp_path: Path, fps: int) -> None:
    timeline = timeline_of(("arrival", 4), ("shot-2", 1), ("rain, close", 5), fps=fps)
    video = write_run_video(tmp_path / "video.mp4", timeline.video_frames, fps=fps)
    out = tmp_path / "out"
    out.mkdir()
    paths = export_shots(video, timeline, out, crf=12)
    assert [path.name for path in paths] == ["01-arrival.mp4", "02-shot-2.mp4", "03-rain-close.mp4"]
    for path, shot in zip(paths, timeline.shots, strict=True):
        assert numbers_of(path) == list(timeline.extent(shot).video_frames)
        assert open_video(path).fps == fps
    assert sorted(path.name for path in out.iterdir()) == [path.name for path in paths]


@pytest.mark.parametrize(("written", "frames"), [(117, [45, 12, 60]), (50, [45, 5]), (45, [45]), (9, [9]), (0, [])])
def test_an_unfinished_video_exports_what_is_there(tmp_path: Path, written: int, frames: list[int]) -> None:
    files = shot_files(SHOTS, frames_written=written)
    assert [len(file.frames) for file in files if file.frames] == frames
    assert [file.is_complete for file in files] == [
        SHOTS.extent(shot).video_frames.stop <= written for shot in SHOTS.shots
    ]
    if written in (50, 45):
        video = write_run_video(tmp_path / "video.mp4", written)
        paths = export_shots(video, SHOTS, tmp_path, frames_written=count_frames(video))
        assert [number for path in paths for number in numbers_of(path)] == list(range(written))


def test_file_names_are_safe_and_unique() -> None:
    timeline = timeline_of(("Rain. close", 1), ("rain close", 1), ("Überfahrt", 1), ("雨", 1), ("../x/\n", 1))
    assert [file.name for file in shot_files(timeline)] == [
        "01-Rain-close.mp4",
        "02-rain-close.mp4",
        "03-Uberfahrt.mp4",
        "04.mp4",
        "05-x.mp4",
    ]
    many = shot_files(timeline_of(*((f"s{number}", 1) for number in range(100))))
    assert many[0].name == "001-s0.mp4" and len({file.name for file in many}) == 100


def chapters_of(video: Path) -> list[tuple[float, float, str]]:
    """Start, end and title of each chapter."""
    done = subprocess.run(
        [ffmpeg(), "-v", "error", "-i", str(video), "-f", "ffmetadata", "-"],
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    chapters = []
    for section in done.stdout.split("[CHAPTER]\n")[1:]:
        found = re.fullmatch(
            r"TIMEBASE=(\d+)/(\d+)\nSTART=(\d+)\nEND=(\d+)\n(?s:title=(.*?))?\n(?:\[STREAM\].*)?", section, re.DOTALL
        )
        assert found is not None, section
        unit = int(found[1]) / int(found[2])
        chapters.append((int(found[3]) * unit, int(found[4]) * unit, re.sub(r"\\(.)", r"\1", found[5], flags=re.S)))
    return chapters


def test_chapters_have_the_times_and_names_of_the_shots(tmp_path: Path) -> None:
    names = ("arrival", "a=b; #1 \\ c", "two\nlines", "雨 Ü")
    timeline = timeline_of(*zip(names, (4, 1, 2, 3), strict=True))
    video = write_run_video(tmp_path / "video.mp4", timeline.video_frames)
    export_chapters(video, timeline, tmp_path / "chapters.mp4")
    extents = [timeline.extent(shot) for shot in timeline.shots]
    assert chapters_of(tmp_path / "chapters.mp4") == [
        (pytest.approx(extent.start_seconds, abs=1e-3), pytest.approx(extent.end_seconds, abs=1e-3), name)
        for extent, name in zip(extents, names, strict=True)
    ]
    assert count_frames(tmp_path / "chapters.mp4") == timeline.video_frames
    assert (read_video(video) == read_video(tmp_path / "chapters.mp4")).all()  # not encoded again
    content = (tmp_path / "chapters.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat") and b"moof" not in content


def test_a_video_that_lacks_frames_is_refused(tmp_path: Path) -> None:
    video = write_run_video(tmp_path / "video.mp4", 50)
    with pytest.raises(LlragError, match=r"02-shot-2\.mp4` would have 5 of 12 frames"):
        export_shots(video, SHOTS, tmp_path)
    with pytest.raises(LlragError, match=r"would have 50 of 117 frames"):
        export_chapters(video, SHOTS, tmp_path / "chapters.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["01-arrival.mp4", "video.mp4"]
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(LlragError, match="cannot be read as a video"):
        count_frames(tmp_path / "text.mp4")


def test_a_folder_is_claimed_and_cleaned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim_folder(out, ["01-a.mp4", "02-b.mp4"])
    for name in ("01-a.mp4", "02-b.mp4", "01-a.mp4.12.partial", "notes.txt"):
        (out / name).touch()
    claim_folder(out, ["01-a.mp4"])
    assert sorted(path.name for path in out.iterdir()) == ["01-a.mp4", MANIFEST, "notes.txt"]
    (out / MANIFEST).write_text('{"files": ["../notes.txt", 3]}')
    (tmp_path / "notes.txt").touch()
    claim_folder(out, [])
    assert (tmp_path / "notes.txt").exists()
    (out / MANIFEST).unlink()
    with pytest.raises(ExportFolderError, match="exists and is not empty"):
        claim_folder(out, ["01-a.mp4"])
    claim_folder(out, ["01-a.mp4"], force=True)
    assert (out / "notes.txt").exists()
    (out / "run.json").touch()
    with pytest.raises(UsageError, match="is a run folder"):
        claim_folder(out, ["video.mp4"], force=True)


def test_the_timeline_is_read_back(tmp_path: Path) -> None:
    otio = importlib.import_module("opentimelineio")
    files = shot_files(SHOTS, frames_written=100)
    write_otio(tmp_path / "timeline.otio", files, name="orchids", fps=FPS, seed=2**64 - 1)
    timeline = otio.adapters.read_from_file(str(tmp_path / "timeline.otio"))
    (track,) = timeline.tracks
    assert (timeline.name, track.kind) == ("orchids", "Video")
    assert (timeline.global_start_time.value, timeline.global_start_time.rate) == (0, FPS)
    starts = [timeline.range_of_child(clip).start_time.to_frames() for clip in track]
    assert starts == [file.frames.start for file in files] == [0, 45, 57]
    for clip, file in zip(track, files, strict=True):
        assert clip.media_reference.target_url == file.name
        assert clip.source_range == clip.media_reference.available_range
        duration = clip.source_range.duration
        assert (duration.value, duration.rate) == (len(file.frames), FPS)
        (marker,) = clip.markers
        assert (marker.name, marker.comment) == (file.shot.name, file.shot.prompt)
        assert (marker.marked_range.start_time.value, marker.marked_range.duration.value) == (0, 1)
    about = [clip.metadata["llrag"] for clip in track]
    assert [entry["seed"] for entry in about] == [7, str(2**64 - 1), str(2**64 - 1)]
    assert about[0]["remember"] == "all" and list(about[1]["remember"]) == ["arrival"]
    assert [entry["kind"] for entry in about] == ["start", "cut", "cut"]
    assert [entry["complete"] for entry in about] == [True, True, False]
    assert timeline.metadata["llrag"]["seed"] == str(2**64 - 1)


def run_of(path: Path, *, frames: int = 45, **changes: Any) -> RunRecord:
    """A run folder of 45 frames at 8 per second, of which some are in the video."""
    path.mkdir()
    timeline = record_of().timeline
    timeline = timeline.model_copy(update={"shots": (timeline.shots[0].until(1),)})
    timeline = timeline.with_shot(next_shot(timeline, "it jumps", start=1, stop=4))
    record = record_of().with_timeline(timeline, seconds=5.6).updated(**changes)
    RunFolder(path).write_record(record)
    write_run_video(path / "video.mp4", frames, fps=8)
    return record


def test_the_command_exports_a_run(llrag: Llrag, tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    done = llrag("export", "run")
    names = ["video.mp4", "01-shot-1.mp4", "02-shot-2.mp4", "timeline.otio"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"run/export/{name}" for name in names]
    assert sorted(path.name for path in (tmp_path / "run/export").iterdir()) == sorted([*names, MANIFEST])
    assert numbers_of(tmp_path / "run/export/02-shot-2.mp4") == list(range(9, 45))
    again = llrag("export", "run", "--json", "--no-timeline", "--crf", "30")
    result = json.loads(again.stdout)
    assert result["timeline"] is None and not (tmp_path / "run/export/timeline.otio").exists()
    assert [(shot["first_frame"], shot["frames"], shot["complete"]) for shot in result["shots"]] == [
        (0, 9, True),
        (9, 36, True),
    ]


def test_the_command_names_what_an_unfinished_run_lacks(llrag: Llrag, tmp_path: Path) -> None:
    run_of(tmp_path / "run", frames=24, status="interrupted")
    done = llrag("export", "run", "--no-timeline")
    assert done.returncode == 0 and "`shot-2` is incomplete: 15 of 36 frames" in done.stderr
    shutil.rmtree(tmp_path / "run")
    run_of(tmp_path / "run", frames=9, status="interrupted")
    done = llrag("export", "run", "--no-timeline", "--json")
    assert "not generated yet: `shot-2`" in done.stderr
    assert [shot["file"] for shot in json.loads(done.stdout)["shots"]] == ["run/export/01-shot-1.mp4", None]


def test_the_command_refuses_before_it_works(llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(tmp_path / "run", frames=24)
    assert "`run/video.mp4` is damaged: it has 24 frames instead of 45" in llrag("export", "run").stderr
    shutil.rmtree(tmp_path / "run")
    run_of(tmp_path / "run")
    (tmp_path / "films").mkdir()
    (tmp_path / "films/video.mp4").touch()
    refused = llrag("export", "run", "--out", "films")
    assert refused.returncode == 2 and "`films` exists and is not empty" in refused.stderr
    assert "add `--force`: files with other names than those of the export are left alone" in refused.stderr
    assert llrag("export", "run", "--out", "run", "--force").stderr.startswith("error: `run` is a run folder\n")
    assert (tmp_path / "films/video.mp4").stat().st_size == 0
    assert "no run folder `films/none`" in llrag("export", "films/none").stderr

    def absent(name: str, *rest: Any, **named: Any) -> Any:
        if name == "opentimelineio":
            raise ImportError(name)
        return importing(name, *rest, **named)

    importing = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    refused = llrag("export", "run")
    assert refused.stderr == (
        "error: OpenTimelineIO is not installed\n\n"
        "hint: `pip install 'llrag[edit]'` installs it; `--no-timeline` exports without it\n"
    )
    assert not (tmp_path / "run/export").exists()
    with pytest.raises(UsageError, match="OpenTimelineIO is not installed"):
        edit.require_opentimelineio()
    assert llrag("export", "run", "--no-timeline").returncode == 0


@pytest.mark.parametrize(("seed", "written"), [(2**63 - 1, 2**63 - 1), (2**63, str(2**63)), (0, 0)])
def test_seeds_that_a_timeline_cannot_hold_are_text(tmp_path: Path, seed: int, written: int | str) -> None:
    write_otio(tmp_path / "timeline.otio", shot_files(SHOTS), name="orchids", fps=FPS, seed=seed)
    assert json.loads((tmp_path / "timeline.otio").read_text())["metadata"]["llrag"]["seed"] == written


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (-9, "half a line", "ffmpeg was killed by signal 9"),
        (1, "first\nlast\n", "last"),
        (1, "", "ffmpeg stopped"),
        (0, "", "ffmpeg stopped"),
    ],
)
def test_why_ffmpeg_failed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, said: str
) -> None:
    done = subprocess.CompletedProcess(["ffmpeg"], code, stdout="", stderr=stderr)
    monkeypatch.setattr(export, "run_ffmpeg", lambda *_, **__: done)
    with pytest.raises(LlragError, match=rf"cannot be read as a video: {said}$"):
        count_frames(tmp_path / "video.mp4")
