"""A session: one video, or batch of videos, while it is being generated."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType

from torch import Tensor
from typing_extensions import Self

from llrag_cli.engine.rollout import Block
from llrag_cli.models.vae import Decoder


class Session(Iterator[Block]):
    """Yields the blocks of a video and owns everything that the video needs while it is generated.

    Keys and values, prompt, rotary times, history, archive, noise and decoder state belong to the session, so any
    number of sessions of one pipeline can be advanced in turns, or from several threads, with the results of each
    alone. The end of the video, an exception, ``close`` and garbage collection all free what the session holds.
    """

    def __init__(self, blocks: Iterator[Block], decoder: Decoder, *, block_count: int) -> None:
        self.block_count = block_count
        self._blocks = blocks
        self._frames = FrameDecoder(decoder)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Block:
        """Generate the next block."""
        block = replace(next(self._blocks), decode=self._frames)
        self._frames.add(block)
        return block

    def close(self) -> None:
        """End the video here; frames that have not been decoded yet cannot be decoded any more."""
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameDecoder:
    """Decodes the blocks of one video in order, each on first access to its frames.

    Latents of blocks that nobody refers to any more are kept only as far as the decoder's temporal reach needs them.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._stream = decoder.stream()
        self._pending: deque[tuple[Tensor, weakref.ref[Block]]] = deque()  # not decoded yet, in order
        self._frames: weakref.WeakKeyDictionary[Block, Tensor] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def add(self, block: Block) -> None:
        """Append the next block of the video."""
        with self._lock:
            self._pending.append((block.latents, weakref.ref(block)))
            self._discard()

    def __call__(self, block: Block) -> Tensor:
        """The frames [B, t, 3, H, W] of a block, in [-1, 1]."""
        with self._lock:
            while block not in self._frames:
                if not self._pending:
                    raise RuntimeError(f"the session is closed: block {block.index} can no longer be decoded")
                latents, reference = self._pending.popleft()
                frames, waiting = self._stream.decode(latents), reference()
                if waiting is not None:
                    self._frames[waiting] = frames
            return self._frames[block]

    def close(self) -> None:
        """Free the decoder's state and all latents."""
        with self._lock:
            self._pending.clear()
            self._stream = self._decoder.stream()

    def _discard(self) -> None:
        """Drop latents that no frame can depend on any more, and begin a new stream after them."""
        unused = 0  # frames of the blocks at the front that nobody refers to
        for latents, reference in self._pending:
            if reference() is not None:
                break
            unused += latents.shape[1]
        while self._pending and unused - self._pending[0][0].shape[1] >= self._decoder.reach:
            unused -= self._pending.popleft()[0].shape[1]
            self._stream = self._decoder.stream()
