"""Pictures of videos, taken out by ffmpeg."""

from __future__ import annotations

import subprocess
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from llrag_cli.errors import LlragError
from llrag_cli.files.ffmpeg import ffmpeg, file_url

SIDE = 160  # pixels, the longer side of a small picture
KEPT = 2000  # small pictures in memory
LIMIT = 60.0  # seconds


class Pictures:
    """JPEG pictures of frames, kept in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Path, int, int], bytes] = OrderedDict()
        self._lock = Lock()

    def frame(self, video: Path, number: int, *, fps: int, side: int = SIDE) -> bytes | None:
        """A frame of a video file by its number; None if the file does not have it. Frames never change."""
        key = video, number, side
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        seek = ["-ss", f"{(number - 0.5) / fps:.6f}"] if number else []
        picture = _jpeg([*seek, "-i", file_url(video), "-vf", _small(side), "-frames:v", "1"])
        if picture:
            with self._lock:
                self._kept[key] = picture
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return picture or None

    def sheet(self, video: Path, *, frames: int, columns: int = 4, rows: int = 4) -> bytes | None:
        """Frames at equal distances, in rows, of a video file that has so many ``frames``."""
        step = max(1, frames // (columns * rows))
        filters = f"select=not(mod(n\\,{step})),{_small(2 * SIDE)},tile={columns}x{rows}"
        return _jpeg(["-i", file_url(video), "-vf", filters, "-frames:v", "1"]) or None


def _small(side: int) -> str:
    return f"scale=w={side}:h={side}:force_original_aspect_ratio=decrease:force_divisible_by=2:flags=area"


def _jpeg(arguments: list[str]) -> bytes:
    command = [ffmpeg(), "-v", "error", "-nostdin", "-fflags", "+discardcorrupt", *arguments]
    command += ["-q:v", "4", "-f", "image2pipe", "-c:v", "mjpeg", "-"]
    try:
        return subprocess.run(command, capture_output=True, timeout=LIMIT, check=False).stdout
    except subprocess.TimeoutExpired:
        raise LlragError("ffmpeg did not respond", hint="is the machine very busy?") from None
