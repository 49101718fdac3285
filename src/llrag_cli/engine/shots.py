"""Shots of a video as the loop knows them: what changes at a block, what came before, and where the loop is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from llrag_cli.cache.context import Context
from llrag_cli.memory.context import (
    Recache,
    RecacheRule,
    Stretch,
    attended,
    block_by_block,
    commit_context,
    leaving,
    recache_of,
)
from llrag_cli.memory.strategies import MemoryConfig
from llrag_cli.sampling.noise import Noise


@dataclass(frozen=True, eq=False)
class Change:
    """A shot begins at a block: what is different from there on."""

    prompt: Tensor  # embeddings [B, text, D]
    cut: bool = False  # a new picture: the window is dropped
    keeps_sink: bool = True  # at a cut
    recache: RecacheRule | None = None  # where it is no cut; None: the memory's own
    remembered: tuple[range, ...] | None = None  # frames from before that it may retrieve; None: all
    pinned: tuple[int, ...] = ()  # frames of references that its blocks always attend to
    noise: Noise | None = None  # the shot's own, counted from its first block; None: the video's
    given: Tensor | None = None  # latents [B, whole blocks of frames, C, h, w] that open the shot unchanged


@dataclass(frozen=True, eq=False)
class Reference:
    """Frames that are memory and no part of the video: latents [B, n, C, h, w], and their prompt [B, text, D]."""

    latents: Tensor
    prompt: Tensor


def reference_spans(counts: Sequence[int]) -> list[range]:
    """The numbers of the frames of references, in order: those of all of them are -n .. -1."""
    ends = list(accumulate(counts, initial=-sum(counts)))
    return [range(start, stop) for start, stop in pairwise(ends)]


class Cursor:
    """Where a rollout is: its shot, its stretch since the last cut, and the latents that a switch computes again."""

    def __init__(self, memory: MemoryConfig, noise: Noise, *, block: int, references: Sequence[range] = ()) -> None:
        self.memory, self.block = memory, block
        self.stretch = Stretch()
        self.shot: Change | None = None  # None: a video of one shot
        self.first_block = 0  # of the shot
        self.generated_from = 0  # first frame of the stretch that is generated, not given
        self.origins = [*(span.start for span in references), 0]  # frames that follow no other: of references, and cuts
        self._video_noise = noise
        self._recent: deque[Tensor] = deque()

    def begin(self, change: Change, index: int) -> None:
        """Enter the shot that begins at a block."""
        start = index * self.block
        self.shot, self.first_block = change, index
        if change.cut and index:
            keep = self.memory.sink if change.keeps_sink else 0
            self.stretch = self.stretch.cut(start, keep=keep)
            self.origins.append(start)
            self._recent.clear()
        if change.cut or not index:
            self.generated_from = start + self.given_frames
        else:
            self.generated_from = min(self.generated_from, start)

    def recache(self, start: int) -> list[tuple[Recache, Tensor]]:
        """The passes that the change of the prompt at frame ``start`` computes frames again in, with their latents.

        It is one pass, or none; with commit `self` one for each block. Frames are counted from the start of the video,
        and the sink is where it is from then on.
        """
        rule = None if self.shot is None else self.shot.recache
        stretch = self.stretch
        time = stretch.time(start)
        found = recache_of(self.memory, start=time, sink_start=stretch.sink, lead=stretch.lead, rule=rule)
        if found is None:
            return []
        self.stretch = stretch.with_sink(found.sink_start)
        latents = torch.cat([*self._recent], dim=1)[:, found.first - time :]
        alone = self.memory.commit == "self"
        passes = block_by_block(found, stop=time, block=self.block) if alone else [found]
        sizes = [after - each.first for each, after in zip(passes, [*(p.first for p in passes[1:]), time], strict=True)]
        sink_start = self.stretch.sink_start
        return [
            (Recache(stretch.frame(each.first), stretch.in_video(each.context), sink_start), part)
            for each, part in zip(passes, latents.split(sizes, dim=1), strict=True)
        ]

    def add(self, latents: Tensor) -> None:
        """Take note of a finished block."""
        window = self.memory.window
        self._recent.append(latents)
        while window is not None and self.block * (len(self._recent) - 1) >= window:
            self._recent.popleft()

    def context(self, start: int, retrieved: Sequence[Sequence[int]] = ()) -> Context:
        """What the block at a frame attends to."""
        return attended(
            self.memory,
            self.stretch,
            start=start,
            block=self.block,
            retrieved=retrieved,
            pinned=self.pinned,
            since=self.origins[0],
        )

    def leaving(self, start: int) -> range:
        """Frames that leave the window with the block at a frame."""
        return leaving(self.memory, self.stretch, start=start, block=self.block)

    def commit_context(self, start: int) -> Context | None:
        """What the clean pass of the block at a frame attends to; None: what its denoising passes attend to."""
        return commit_context(self.memory, self.stretch, start=start, block=self.block)

    def opens(self, start: int) -> bool:
        """Whether no frame of the stretch comes before a frame."""
        return start == self.stretch.origin

    @property
    def given_frames(self) -> int:
        """Frames that open the shot and are not generated."""
        return 0 if self.shot is None or self.shot.given is None else self.shot.given.shape[1]

    def given(self, start: int) -> Tensor | None:
        """The latents [B, T, C, h, w] of the block at a frame, if they are given."""
        offset = start - self.first_block * self.block
        if offset >= self.given_frames or self.shot is None or self.shot.given is None:
            return None
        return self.shot.given[:, offset : offset + self.block]

    @property
    def pinned(self) -> tuple[int, ...]:
        """Frames of references that are always attended to."""
        return () if self.shot is None else self.shot.pinned

    def draw(self, block: int, step: int, shape: Sequence[int]) -> Tensor:
        """As ``Noise.draw``: the noise of a block of the video, from its shot's own source if that has one."""
        if self.shot is not None and self.shot.noise is not None:
            return self.shot.noise.draw(block - self.first_block, step, shape)
        return self._video_noise.draw(block, step, shape)
