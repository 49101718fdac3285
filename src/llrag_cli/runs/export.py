"""The shots of a video as files: one mp4 per shot, cut to the exact frame, and the whole video with chapters."""

from __future__ import annotations

import glob
import json
import re
import subprocess
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llrag_cli.errors import ExportFolderError, LlragError, UnwritableError, UsageError
from llrag_cli.files.durable import create_folder, replace_text, replacing, require_own
from llrag_cli.files.ffmpeg import file_url, run_ffmpeg
from llrag_cli.files.guarded import UnreadableError, read_bytes
from llrag_cli.files.paths import is_file_name
from llrag_cli.files.records import Record, parse_as
from llrag_cli.scenes.timeline import ShotSpan, Timeline

MANIFEST = "export.json"
CRF = 12  # x264 quality of a shot: it is encoded a second time, so finer than most videos
LONGEST_NAME = 100  # characters of a shot's name in that of its file
ROOM = "the files of the export need about as much room as the video, a few times over; free some space"


@dataclass(frozen=True)
class ShotFile:
    """The file of a shot, and which frames of the video it shows."""

    shot: ShotSpan
    name: str
    frames: range  # video frames; fewer than the shot has, or none, in an unfinished video
    is_complete: bool


def shot_files(timeline: Timeline, *, frames_written: int | None = None) -> list[ShotFile]:
    """A file for each shot of a video, of which ``frames_written`` exist; None: all of them.

    Names consist of a number, which makes them unique, and of ASCII letters and digits: ``01-arrival.mp4``.
    """
    written = timeline.video_frames if frames_written is None else frames_written
    digits = max(2, len(str(len(timeline.shots))))
    files = []
    for number, shot in enumerate(timeline.shots, start=1):
        frames = timeline.extent(shot).video_frames
        name = "-".join(filter(None, [f"{number:0{digits}d}", _ascii(shot.name)]))
        present = range(min(frames.start, written), min(frames.stop, written))
        files.append(ShotFile(shot, f"{name}.mp4", present, is_complete=len(present) == len(frames)))
    return files


def _ascii(name: str) -> str:
    """The first letters and digits of a name without accents, joined by hyphens; empty if it has none."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[A-Za-z0-9]+", plain))[:LONGEST_NAME].rstrip("-")


def claim_folder(out: Path, names: Sequence[str], *, force: bool = False) -> None:
    """Make a folder ready for the files of an export, and record their ``names`` in ``export.json``.

    What an earlier export left, finished or not, is removed. A folder with other files is an error unless ``force``
    allows to write next to them.
    """
    manifest = out / MANIFEST
    for name in (MANIFEST, *names):
        require_own(out / name)
    try:
        if (out / "run.json").exists():
            raise UsageError(f"`{out}` is a run folder", hint="choose another folder for the export")
        earlier = _recorded(manifest)
        begun = [*out.glob(f"{MANIFEST}.*.partial")]  # by an export that was killed before its first file
        if earlier is None and not force and out.exists() and any(path not in begun for path in out.iterdir()):
            raise ExportFolderError(out)
        for partial in begun:
            partial.unlink(missing_ok=True)
        create_folder(out)
        for name in earlier or ():
            for partial in out.glob(f"{glob.escape(name)}.*.partial"):
                partial.unlink(missing_ok=True)
            if name not in names:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(out, (error.strerror or str(error)).lower()) from error
    replace_text(manifest, json.dumps({"files": list(names)}, indent=2) + "\n")


def _recorded(manifest: Path) -> list[str] | None:
    """Names of the files of an earlier export; None if there was none."""
    try:
        names = parse_as(_Manifest, read_bytes(manifest)).files
    except (FileNotFoundError, UnreadableError):
        return None  # none, or a file of this name that is not ours
    return [name for name in names if isinstance(name, str) and is_file_name(name)]


class _Manifest(Record):
    """The content of ``export.json``."""

    files: list[Any]


def export_shots(
    video: Path, timeline: Timeline, out: Path, *, crf: int = CRF, frames_written: int | None = None
) -> list[Path]:
    """Write one mp4 per shot into a folder, from its first video frame to its last; returns the paths.

    Shots are encoded again, because most cuts fall between keyframes. Of an unfinished video with so many
    ``frames_written``, the last shot may be incomplete, and those after it are left out.
    """
    files = [file for file in shot_files(timeline, frames_written=frames_written) if file.frames]
    for file in files:
        export_shot(video, file, out, fps=timeline.fps, crf=crf)
    return [out / file.name for file in files]


def export_shot(video: Path, file: ShotFile, out: Path, *, fps: int, crf: int = CRF) -> Path:
    """Write the file of one shot into a folder; returns its path."""
    # half a frame early, so that rounding cannot skip the first one
    seek = ["-ss", f"{(file.frames.start - 0.5) / fps:.6f}"] if file.frames.start else []
    with replacing(out / file.name, hint=ROOM) as partial:
        _run(
            out / file.name,
            video,
            *(*seek, "-i", file_url(video), "-map", "0:v:0", "-map_metadata", "-1", "-map_chapters", "-1"),
            *("-frames:v", str(len(file.frames)), "-vf", f"setpts=N/({fps}*TB)", "-r", str(fps)),
            *("-c:v", "libx264", "-crf", str(crf), "-preset", "medium", "-bf", "0", "-g", str(fps)),
            *("-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", file_url(partial)),
        )
        _require_frames(partial, len(file.frames), target=out / file.name)
    return out / file.name


def export_chapters(video: Path, timeline: Timeline, target: Path, *, frames_written: int | None = None) -> None:
    """Write the whole video as an ordinary mp4 that can be streamed, with a chapter per shot; no frame is encoded."""
    files = [file for file in shot_files(timeline, frames_written=frames_written) if file.frames]
    with replacing(target, hint=ROOM) as partial:
        _run(
            target,
            video,
            *("-fflags", "+discardcorrupt", "-i", file_url(video), "-f", "ffmetadata", "-i", "pipe:0"),
            *("-map", "0:v:0", "-map_metadata", "0", "-map_chapters", "1", "-c", "copy"),
            *("-movflags", "+faststart", "-f", "mp4", file_url(partial)),
            text=_ffmetadata(files, timeline.fps),
        )
        _require_frames(partial, sum(len(file.frames) for file in files), target=target)


def _ffmetadata(files: list[ShotFile], fps: int) -> str:
    """Chapters in the format of ffmpeg, timed in frames."""
    lines = [";FFMETADATA1"]
    for file in files:
        title = re.sub(r"([=;#\\\n\r])", r"\\\1", file.shot.name)
        times = [f"TIMEBASE=1/{fps}", f"START={file.frames.start}", f"END={file.frames.stop}"]
        lines += ["[CHAPTER]", *times, f"title={title}"]
    return "\n".join(lines) + "\n"


def count_frames(video: Path) -> int:
    """How many whole frames the first track of a video file holds; nothing is decoded."""
    done = run_ffmpeg(
        [
            "-v",
            "error",
            *("-fflags", "+discardcorrupt", "-i", file_url(video), "-map", "0:v:0", "-c", "copy"),
            *("-f", "framecrc", "-"),  # a line for each; progress does not count copied frames in every version
        ],
        reading=video,
    )
    frames = sum(line[:1].isdigit() for line in done.stdout.splitlines())
    if done.returncode or not frames:
        raise LlragError(f"`{video}` cannot be read as a video: {_reason(done)}", hint="is it a finished mp4?")
    return frames


def _require_frames(partial: Path, frames: int, *, target: Path) -> None:
    count = count_frames(partial)
    if count != frames:
        raise LlragError(
            f"`{target}` would have {count} of {frames} frames",
            hint="the video is damaged or has another frame rate than its record; generate it again",
        )


def _run(target: Path, video: Path, *arguments: str, text: str = "") -> None:
    """Let ffmpeg write ``target`` from a video, with ``text`` as its standard input."""
    done = run_ffmpeg(["-v", "error", "-y", *arguments], reading=video, text=text)
    if done.returncode:
        hint = "try again: it ended before it could finish" if done.returncode < 0 else ROOM
        raise LlragError(f"`{target}` could not be written: {_reason(done)}", hint=hint)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that ffmpeg wrote about a failure, or the signal that killed it."""
    if done.returncode < 0:
        return f"ffmpeg was killed by signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or ["ffmpeg stopped"])[-1]
