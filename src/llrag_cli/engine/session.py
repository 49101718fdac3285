"""A session: one video, or batch of videos, while it is being generated."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from types import TracebackType
from typing import Self

from torch import Tensor

from llrag_cli.engine.rollout import Block
from llrag_cli.engine.shots import Change
from llrag_cli.errors import UsageError
from llrag_cli.models.vae import Decoder, stream_after_cut
from llrag_cli.scenes.timeline import ShotSpan, Timeline, next_shot


class Session(Iterator[Block]):
    """Yields the blocks of a video and owns everything that the video needs while it is generated.

    Keys and values, prompt, rotary times, history, archive, noise and decoder state belong to the session, so any
    number of sessions of one pipeline can be advanced in turns, or from several threads, with the results of each
    alone. The end of the video, an exception, ``close`` and garbage collection all free what the session holds.
    """

    def __init__(
        self,
        blocks: Iterator[Block],
        decoder: Decoder,
        *,
        timeline: Timeline,
        changes: MutableMapping[int, Change],
        change_of: Callable[[ShotSpan], Change],
    ) -> None:
        self.timeline = timeline  # with the shots that were begun by ``switch``
        self._blocks = blocks
        self._frames = FrameDecoder(decoder)
        self._changes, self._change_of = changes, change_of
        self._next = 0  # block

    @property
    def block_count(self) -> int:
        """Blocks of the video."""
        return self.timeline.blocks

    def switch(self, prompt: str, *, cut: bool = False, name: str = "") -> ShotSpan:
        """Follow another prompt from the next block on, for the whole batch; with a ``cut`` as a new picture.

        The new shot, called ``name`` unless that is taken, may remember everything before it and lasts until the next
        one that was planned. It is in ``timeline`` from now on: another session of that timeline is the same video.

        Raises ``UsageError`` for an empty prompt, before the first block and after the last one.
        """
        if not prompt.strip():
            raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows from here on")
        if not 0 < self._next < self.block_count:
            when = "there is no block yet" if self._next == 0 else "the last block is finished"
            raise UsageError(f"the prompt cannot change: {when}", hint="switch between two blocks")
        stop = self.timeline.shot_at(self._next).stop
        shot = next_shot(self.timeline, prompt, start=self._next, stop=stop, cut=cut, name=name)
        self._changes[self._next] = self._change_of(shot)
        self.timeline = self.timeline.with_shot(shot)
        return shot

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Block:
        """Generate the next block."""
        block = replace(next(self._blocks), decode=self._frames)
        self._frames.add(block)
        self._next = block.index + 1
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
        self._pending: deque[tuple[Tensor, bool, weakref.ref[Block]]] = deque()  # latents, cut: not decoded yet
        self._frames: weakref.WeakKeyDictionary[Block, Tensor] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def add(self, block: Block) -> None:
        """Append the next block of the video."""
        with self._lock:
            self._pending.append((block.latents, block.cut, weakref.ref(block)))
            self._discard()

    def __call__(self, block: Block) -> Tensor:
        """The frames [B, t, 3, H, W] of a block, in [-1, 1]."""
        with self._lock:
            while block not in self._frames:
                if not self._pending:
                    raise RuntimeError(f"the session is closed: block {block.index} can no longer be decoded")
                latents, cut, reference = self._pending.popleft()
                if cut:
                    self._stream = stream_after_cut(self._decoder, latents)
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
        for latents, _, reference in self._pending:
            if reference() is not None:
                break
            unused += latents.shape[1]
        while self._pending and unused - self._pending[0][0].shape[1] >= self._decoder.reach:
            unused -= self._pending.popleft()[0].shape[1]
            self._stream = self._decoder.stream()
