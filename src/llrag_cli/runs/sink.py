"""Decoding and writing on a thread, while the next block is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from llrag_cli.runs.video import to_bytes

Commit = Callable[[Tensor], None]


class Decoder(Protocol):
    """Turns the next latent frames of one video into its next frames."""

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, t, 3, H, W] in [-1, 1] of the next latents [B, T, C, h, w]."""
        ...


_Item = tuple[Tensor, Any, Commit | None, Callable[[], Decoder] | None]


class FrameWriter(Protocol):
    """Where the frames of a video go."""

    def write(self, frames: Tensor) -> None:
        """Append frames [T, 3, H, W] in [-1, 1], or in 0..255 as uint8."""
        ...

    def close(self) -> None:
        """Finish the video."""
        ...


class VideoSink:
    """Decodes latents and writes their frames on its own thread; on a GPU also on its own stream."""

    def __init__(self, decoder: Decoder, writer: FrameWriter) -> None:
        self.writer = writer
        self._decoder = decoder
        self._queue: queue.Queue[_Item | None] = queue.Queue(maxsize=2)  # bounds memory
        self._stream: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="video", daemon=True)

    def __enter__(self) -> VideoSink:
        self._thread.start()
        return self

    def put(
        self, latents: Tensor, *, commit: Commit | None = None, restart: Callable[[], Decoder] | None = None
    ) -> None:
        """Queue the next latents [1, T, C, h, w]; raises the error of earlier ones.

        ``commit`` is called before decoding, on the thread, with the latents on the CPU. At a cut, ``restart`` returns
        the decoder for these latents and all that follow; what it allocates belongs to the thread's stream.
        """
        if self._error is not None:
            raise self._error
        ready = torch.cuda.current_stream(latents.device).record_event() if latents.is_cuda else None
        self._queue.put((latents, ready, commit, restart))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write everything that is queued and finish the file, also after an error elsewhere."""
        try:
            self._end()
        except KeyboardInterrupt:  # the thread finishes the file even so; a second request to stop is obeyed at once
            self._end()
            raise
        if self._error is not None and kind is None:
            raise self._error

    def _end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            try:
                while (item := self._queue.get()) is not None:
                    self._take(*item)
            finally:
                self.writer.close()
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that generates
            self._error = error
            while item is not None:  # keep the queue empty until the end, so that `put` does not block
                item = self._queue.get()

    def _take(self, latents: Tensor, ready: Any, commit: Commit | None, restart: Callable[[], Decoder] | None) -> None:
        """Commit latents and write their frames, once the event that follows their computation has passed."""
        if ready is None:
            if commit is not None:
                commit(latents)
            if restart is not None:
                self._decoder = restart()
            self.writer.write(self._decoder.decode(latents)[0])
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(latents.device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            latents.record_stream(self._stream)
            if commit is not None:
                commit(latents.cpu())  # waits for this stream alone
            if restart is not None:
                self._decoder = restart()
            frames = to_bytes(self._decoder.decode(latents)).cpu()  # a quarter of what float32 takes
        self.writer.write(frames[0])
