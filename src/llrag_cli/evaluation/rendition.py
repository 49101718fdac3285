"""Small copies of videos, to be embedded in a page."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from llrag_cli.errors import LlragError
from llrag_cli.files.ffmpeg import file_url, run_ffmpeg
from llrag_cli.runs.video import open_video

LONGER_SIDE = 256  # pixels, at most
CRF = 30  # x264 quality


def rendition_size(width: int, height: int, *, upscale: int = 1) -> tuple[int, int]:
    """Even width and height of a rendition: not larger than the frames were before they were enlarged."""
    scale = min(1 / upscale, LONGER_SIDE / max(width, height))
    columns, rows = (max(2, 2 * round(scale * side / 2)) for side in (width, height))
    return columns, rows


def rendition(video: Path, *, upscale: int = 1, crf: int = CRF) -> bytes:
    """A small mp4 of a video without sound, of which each pixel was enlarged to ``upscale`` x ``upscale``."""
    opened = open_video(video)
    width, height = rendition_size(opened.width, opened.height, upscale=upscale)
    opened.close()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rendition.mp4"
        encode = ["-c:v", "libx264", "-crf", str(crf), "-preset", "slow", "-pix_fmt", "yuv420p"]
        command = ["-v", "error", "-i", file_url(video), "-an", "-vf", f"scale={width}:{height}:flags=area"]
        done = run_ffmpeg([*command, *encode, "-movflags", "+faststart", file_url(target)], reading=video)
        if done.returncode or not target.exists():
            reason = (done.stderr.strip().splitlines() or ["ffmpeg stopped"])[-1]
            raise LlragError(
                f"no small copy of `{video}` could be made for the report: {reason}",
                hint="the report embeds small copies of the videos; is there room for temporary files?",
            )
        return target.read_bytes()


def renditions(videos: Iterable[tuple[Path, int]], *, limit: int, crf: int = CRF) -> list[bytes] | None:
    """Renditions of videos, each given with its upscale; None if together they exceed ``limit`` bytes."""
    copies: list[bytes] = []
    for video, upscale in videos:
        copies.append(rendition(video, upscale=upscale, crf=crf))
        limit -= len(copies[-1])
        if limit < 0:
            return None
    return copies
