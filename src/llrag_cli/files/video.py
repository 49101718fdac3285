"""Writing and reading video files through ffmpeg."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.vae import StreamingDecoder


def ffmpeg() -> str:
    """Path of the ffmpeg program."""
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise LlragError(
            "there is no ffmpeg program", hint="reinstall imageio-ffmpeg, or point IMAGEIO_FFMPEG_EXE to one"
        ) from None
    if not Path(executable).exists() and "/" in executable:
        raise LlragError(
            f"there is no ffmpeg program at `{executable}`", hint="mend or unset the variable IMAGEIO_FFMPEG_EXE"
        )
    return executable


class VideoWriter:
    """An H.264 mp4 that grows frame by frame; it is made of fragments, so it plays wherever writing stops."""

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
            raise LlragError(
                f"`{self.path}` could not be written: {self._cause(error)}",
                hint="what was made before is kept; make room, or choose another folder",
            ) from error

    def close(self) -> None:
        """Finish the file."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _cause(self, error: OSError) -> str:
        """What ffmpeg's broken pipe most likely means."""
        if not self.path.parent.is_dir():
            return "its folder is not there"
        if shutil.disk_usage(self.path.parent).free < 2**16:
            return "the disk is full"
        return (error.strerror or "ffmpeg stopped").lower()

    def _open(self, width: int, height: int) -> Generator[None, Any, None]:
        import imageio_ffmpeg

        ffmpeg()
        scale = ["-vf", f"scale=iw*{self._upscale}:ih*{self._upscale}:flags=neighbor"] if self._upscale > 1 else []
        pipe: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(self.path),
            (width, height),
            fps=self._fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="quiet",
            output_params=[
                *scale,
                *("-crf", str(self._crf), "-preset", "fast", "-tune", "zerolatency", "-g", str(2 * self._fps)),
                *("-movflags", "frag_keyframe+empty_moov+default_base_moof", "-flush_packets", "1"),
            ],
        )
        pipe.send(None)
        return pipe


class VideoSink:
    """Decodes latents and writes their frames on a thread of its own, while the next block is computed.

    On a GPU it decodes on a stream of its own, so that neither waits for the other's kernels.
    """

    def __init__(self, decoder: StreamingDecoder, writer: VideoWriter) -> None:
        self.writer = writer
        self._decoder = decoder
        self._queue: queue.Queue[tuple[Tensor, Any] | None] = queue.Queue(maxsize=2)  # so memory stays flat
        self._stream: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="video", daemon=True)

    def __enter__(self) -> VideoSink:
        self._decoder.reset()
        self._thread.start()
        return self

    def put(self, latents: Tensor) -> None:
        """Hand over the next latents [1, T, C, h, w]; raises what went wrong with earlier ones."""
        if self._error is not None:
            raise self._error
        self._queue.put((latents, torch.cuda.current_stream().record_event() if latents.is_cuda else None))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write out all that was handed over and finish the file, also after an error elsewhere."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _work(self) -> None:
        try:
            while (handed := self._queue.get()) is not None:
                self.writer.write(self._decode(*handed)[0])
        except BaseException as error:  # noqa: BLE001 - handed to the thread that generates
            self._error = error
            while self._queue.get() is not None:  # until told to stop, so that nobody waits for room
                pass
        finally:
            self.writer.close()

    def _decode(self, latents: Tensor, ready: Any) -> Tensor:
        """Frames of latents, once the event of their making has passed."""
        if ready is None:
            return self._decoder.decode(latents)
        if self._stream is None:
            self._stream = torch.cuda.Stream(latents.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            latents.record_stream(self._stream)
            return self._decoder.decode(latents).cpu()  # waits for this stream alone


@dataclass(frozen=True)
class OpenVideo:
    """A video file being read: frames [3, H, W] in [0, 1], once, in order."""

    fps: float
    width: int
    height: int
    frames: Generator[Tensor, None, None]

    def close(self) -> None:
        """Stop reading before the end."""
        self.frames.close()


def open_video(path: Path) -> OpenVideo:
    """Open a video file; one that has no picture to show is an error, here or when it ends too soon."""
    import imageio_ffmpeg

    ffmpeg()
    unreadable = LlragError(f"`{path}` cannot be read as a video", hint="is it a finished mp4?")
    raw = imageio_ffmpeg.read_frames(str(path))
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
