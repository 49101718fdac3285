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
from llrag_cli.files.ffmpeg import Watch, ffmpeg, file_url, process_of
from llrag_cli.runs.commits import START, VideoMark
from llrag_cli.runs.mp4 import split_fragments

KEPT = "what was written before is kept; free some space, or choose another folder"
AGAIN = "try again; were memory, processes or the time of this machine limited?"
KILLED = "what was written before is kept; were memory, processes or the time of this machine limited?"


def to_bytes(frames: Tensor) -> Tensor:
    """Frames of any shape in [-1, 1] as uint8 in 0..255, on the device they are on."""
    return (
        frames if frames.dtype == torch.uint8 else ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    )


class VideoWriter:
    """Writes an H.264 mp4 frame by frame; it consists of fragments, so an unfinished file plays."""

    def __init__(self, path: Path, *, fps: int, upscale: int = 1, crf: int = 18, part_of: Path | None = None) -> None:
        """Errors name the file that this one will be ``part_of``, if it is one."""
        self.path = path
        self._named = part_of or path
        self.frames = 0  # written so far
        self._fps, self._upscale, self._crf = fps, upscale, crf
        self._pipe: Generator[None, Any, None] | None = None
        self._watch: Watch | None = None

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W] in [-1, 1], or what ``to_bytes`` made of them."""
        bytes_ = to_bytes(frames).permute(0, 2, 3, 1).cpu().numpy()
        try:
            if self._pipe is None:
                self._pipe = self._open(bytes_.shape[2], bytes_.shape[1])
                self._watch = Watch(process_of(self._pipe))
            assert self._watch is not None
            for image in bytes_:
                with self._watch:
                    self._pipe.send(np.ascontiguousarray(image))
                self.frames += 1
        except OSError as error:
            self._pipe = None
            raise self.failure(error) from error

    def close(self) -> None:
        """Finish the file; raises ``LlragError`` if ffmpeg could not."""
        pipe, self._pipe = self._pipe, None
        if pipe is None or self._watch is None:
            return
        with self._watch:
            pipe.close()
        if self._watch.process.wait():
            raise self.failure(OSError())

    def failure(self, error: OSError) -> LlragError:
        """The error of a broken pipe to ffmpeg, with its most likely cause."""
        death, hint = None if self._watch is None else self._watch.death, KEPT
        if not self.path.parent.is_dir():
            cause = "its folder does not exist"
        elif shutil.disk_usage(self.path.parent).free < 2**16:
            cause = "the disk is full"
        elif death is not None:
            cause, hint = death, KILLED
        else:
            cause = (error.strerror or "ffmpeg stopped").lower()
        return LlragError(f"`{self._named}` could not be written: {cause}", hint=hint)

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
        """Append the frames [T, 3, H, W] in [-1, 1] of the next block, or what ``to_bytes`` made of them."""
        if self._segment is None:
            fps, upscale, crf = self._settings
            part = self.path.with_name(f"{self.path.stem}.{os.getpid()}.part.mp4")
            self._segment = VideoWriter(part, fps=fps, upscale=upscale, crf=crf, part_of=self.path)
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
            reason = error if isinstance(error, OSError) else OSError(0, f"ffmpeg left {error}")
            raise segment.failure(reason) from error
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
        about = next(raw)  # within ten seconds
        (width, height), fps = about["size"], float(about["fps"])
    except (OSError, StopIteration, KeyError, RuntimeError) as error:
        raise unreadable from error
    if not (width > 0 and height > 0 and fps > 0):
        raise unreadable
    watch = Watch(process_of(raw))

    def waited() -> bytes | None:
        with watch:
            return next(raw, None)

    def frames() -> Generator[Tensor, None, None]:
        count = 0
        try:
            while (bytes_ := waited()) is not None:
                image = torch.frombuffer(bytearray(bytes_), dtype=torch.uint8).view(height, width, 3)
                count += 1
                yield image.permute(2, 0, 1).float() / 255
        except (OSError, RuntimeError) as error:
            if watch.death is not None:
                raise LlragError(f"`{path}` could not be read: {watch.death}", hint=AGAIN) from error
            raise unreadable from error
        finally:
            raw.close()
        if watch.death is not None:
            raise LlragError(f"`{path}` could not be read: {watch.death}", hint=AGAIN)
        if count == 0:
            raise unreadable

    return OpenVideo(fps, width, height, frames())


def read_frames(path: Path) -> Iterator[Tensor]:
    """The frames [3, H, W] of a video file, in [0, 1], one after the other."""
    return open_video(path).frames


def read_video(path: Path) -> Tensor:
    """All frames [T, 3, H, W] of a video file in [0, 1]."""
    return torch.stack(list(read_frames(path)))
