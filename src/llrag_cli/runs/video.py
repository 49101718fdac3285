"""Writing and reading video files through ffmpeg."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.files.durable import AppendFile
from llrag_cli.files.ffmpeg import ffmpeg, file_url
from llrag_cli.runs.journal import START, VideoMark
from llrag_cli.runs.mp4 import split_fragments

KEPT = "what was written before is kept; free some space, or choose another folder"


class VideoWriter:
    """Writes an H.264 mp4 frame by frame; it consists of fragments, so an unfinished file plays."""

    def __init__(self, path: Path, *, fps: int, upscale: int = 1, crf: int = 18) -> None:
        self.path = path
        self.frames = 0  # written so far
        self._fps, self._upscale, self._crf = fps, upscale, crf
        self._pipe: Generator[None, Any, None] | None = None

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W] in [-1, 1]."""
        bytes_ = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        try:
            if self._pipe is None:
                self._pipe = self._open(bytes_.shape[2], bytes_.shape[1])
            for image in bytes_:
                self._pipe.send(np.ascontiguousarray(image))
                self.frames += 1
        except OSError as error:
            self._pipe = None
            raise LlragError(f"`{self.path}` could not be written: {self.cause(error)}", hint=KEPT) from error

    def close(self) -> None:
        """Finish the file."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def cause(self, error: OSError) -> str:
        """The most likely cause of a broken pipe to ffmpeg."""
        if not self.path.parent.is_dir():
            return "its folder does not exist"
        if shutil.disk_usage(self.path.parent).free < 2**16:
            return "the disk is full"
        return (error.strerror or "ffmpeg stopped").lower()

    def _open(self, width: int, height: int) -> Generator[None, Any, None]:
        import imageio_ffmpeg

        ffmpeg()
        scale = ["-vf", f"scale=iw*{self._upscale}:ih*{self._upscale}:flags=neighbor"] if self._upscale > 1 else []
        pipe: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            file_url(self.path),
            (width, height),
            fps=self._fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="quiet",
            output_params=[
                *scale,
                *("-crf", str(self._crf), "-preset", "fast", "-tune", "zerolatency", "-g", str(2 * self._fps)),
                *("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-flush_packets", "1", "-f", "mp4"),
            ],
        )
        pipe.send(None)
        return pipe


class SegmentedVideo:
    """Writes an H.264 mp4 in segments of a few blocks, each encoded by itself, so that writing can be resumed.

    A segment is appended once it is complete, so the file plays at any time, and its bytes do not depend on
    interruptions. ``mark`` is its length after whole segments.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: int,
        blocks: int,
        upscale: int = 1,
        crf: int = 18,
        mark: VideoMark | None = None,
    ) -> None:
        """Continue a file after ``mark``, in segments of so many ``blocks``."""
        self.path = path
        self.mark = mark or START
        self.frames = self.mark.frames  # written so far, including those of an unfinished segment
        self.crc32 = self.mark.crc32  # of the file as it is
        self._blocks, self._settings = blocks, (fps, upscale, crf)
        self._file = AppendFile(path, length=self.mark.bytes)
        for stale in path.parent.glob(f"{path.stem}.*.part.mp4"):
            stale.unlink(missing_ok=True)
        self._segment: VideoWriter | None = None
        self._pending = 0  # blocks of the segment so far

    def write(self, frames: Tensor) -> None:
        """Append the frames [T, 3, H, W] in [-1, 1] of the next block."""
        if self._segment is None:
            fps, upscale, crf = self._settings
            part = self.path.with_name(f"{self.path.stem}.{os.getpid()}.part.mp4")
            self._segment = VideoWriter(part, fps=fps, upscale=upscale, crf=crf)
        try:
            self._segment.write(frames)
        except LlragError:
            self._segment.path.unlink(missing_ok=True)
            self._segment = None
            raise
        self.frames += len(frames)
        self._pending += 1
        if self._pending == self._blocks:
            self.mark = self._append()

    def close(self) -> None:
        """Append the last segment, even if it is incomplete, and close the file."""
        try:
            if self._segment is not None:
                self._append()
        finally:
            self._file.close()

    def _append(self) -> VideoMark:
        """Finish the segment; returns the length of the file after it."""
        assert self._segment is not None
        segment, blocks = self._segment, self._pending
        self._segment, self._pending = None, 0
        try:
            segment.close()
            part = split_fragments(
                segment.path.read_bytes(), frames_before=self.mark.frames, fragments_before=self.mark.fragments
            )
            if part.frames != segment.frames:
                raise ValueError(f"{part.frames} of {segment.frames} frames")
        except (OSError, ValueError) as error:
            cause = segment.cause(error if isinstance(error, OSError) else OSError(0, f"ffmpeg left {error}"))
            raise LlragError(f"`{self.path}` could not be written: {cause}", hint=KEPT) from error
        finally:
            segment.path.unlink(missing_ok=True)
        content = part.body if self.mark.frames else part.opening + part.body
        self._file.append(content)
        self.crc32 = None if self.crc32 is None else zlib.crc32(content, self.crc32)
        return VideoMark(
            bytes=self._file.length,
            frames=self.mark.frames + part.frames,
            fragments=self.mark.fragments + part.fragments,
            blocks=self.mark.blocks + blocks,
            crc32=self.crc32,
        )


@dataclass(frozen=True)
class OpenVideo:
    """A video file that is being read: ``frames`` [3, H, W] in [0, 1], in order, once."""

    fps: float
    width: int
    height: int
    frames: Generator[Tensor, None, None]

    def close(self) -> None:
        """Stop reading before the end."""
        self.frames.close()


def open_video(path: Path) -> OpenVideo:
    """Open a video file; one without frames is an error, here or when it ends too soon."""
    import imageio_ffmpeg

    ffmpeg()
    unreadable = LlragError(f"`{path}` cannot be read as a video", hint="is it a finished mp4?")
    raw = imageio_ffmpeg.read_frames(file_url(path))
    try:
        about = next(raw)
        (width, height), fps = about["size"], float(about["fps"])
    except (OSError, StopIteration, KeyError, RuntimeError) as error:
        raise unreadable from error
    if not (width > 0 and height > 0 and fps > 0):
        raise unreadable

    def frames() -> Generator[Tensor, None, None]:
        count = 0
        try:
            for bytes_ in raw:
                image = torch.frombuffer(bytearray(bytes_), dtype=torch.uint8).view(height, width, 3)
                count += 1
                yield image.permute(2, 0, 1).float() / 255
        except (OSError, RuntimeError) as error:
            raise unreadable from error
        finally:
            raw.close()
        if count == 0:
            raise unreadable

    return OpenVideo(fps, width, height, frames())


def read_frames(path: Path) -> Iterator[Tensor]:
    """The frames [3, H, W] of a video file, in [0, 1], one after the other."""
    return open_video(path).frames


def read_video(path: Path) -> Tensor:
    """All frames [T, 3, H, W] of a video file in [0, 1]."""
    return torch.stack(list(read_frames(path)))
