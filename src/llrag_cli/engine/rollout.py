"""The main path: a prompt becomes latent frames, block by block, for as long as asked.

for each block:
    retrieved = past frames most like the newest one                  # history, memory strategy
    context   = [sink | retrieved | recent], each at its rotary time  # context policy
    latents   = few-step denoising of noise, given context and prompt
    a clean pass stores the block's keys and values in the cache
    history grows by the block
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llrag_cli.cache.archive import new_archive
from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.errors import NotFiniteError
from llrag_cli.memory.candidates import Candidates
from llrag_cli.memory.context import context_of, recache_of, retrievable
from llrag_cli.memory.history import History
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory
from llrag_cli.sampling.noise import Noise
from llrag_cli.sampling.schedule import FlowMatchSchedule

Retrieved = tuple[list[list[int]], list[list[float]]]  # frames and their similarities, [B][K]


class BackboneSession(Protocol):
    """One video, or batch, of a backbone: predicts flow given a context of past frames."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def set_prompt(self, prompt: Tensor, *, start: int) -> None: ...
    def set_context(self, context: Context, *, start: int, block: int, height: int, width: int) -> None: ...
    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor: ...
    def recache(self, context: Context, latents: Tensor, *, start: int, timestep: float) -> None: ...
    def update_cache(self, latents: Tensor, timestep: float, prefetch: Sequence[Sequence[int]]) -> None: ...
    def close(self) -> None: ...


class Backbone(Protocol):
    """Frozen weights that videos are generated with."""

    @property
    def layers(self) -> int: ...
    def start(self, prompt: Tensor, cache: WanKVCache) -> BackboneSession: ...


@dataclass(frozen=True, eq=False)
class Block:
    """A finished block: latents [B, T, C, h, w] of frames start .. start + T - 1, and how it was generated."""

    index: int
    start: int
    latents: Tensor
    retrieved: list[list[int]] = field(default_factory=list)  # [B][K], in order of choice
    similarities: list[list[float]] = field(default_factory=list)  # [B][K], cosines with the query
    moved: int = 0  # retrieved pages that had to be copied to the device, over all videos of the batch
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by part
    decode: Callable[[Block], Tensor] | None = field(default=None, repr=False)

    @property
    def frames(self) -> Tensor:
        """Video frames [B, t, 3, H, W] in [-1, 1], decoded when first asked for."""
        if self.decode is None:
            raise RuntimeError("this block belongs to no session: there is no decoder for its latents")
        return self.decode(self)


def rollout(
    backbone: Backbone,
    prompt: Tensor,
    *,
    frames: int,
    shape: tuple[int, int, int],
    block: int,
    schedule: FlowMatchSchedule,
    memory: MemoryConfig,
    history: History,
    noise: Noise,
    context_timestep: float = 0.0,
    initial_latents: Tensor | None = None,
    prompt_schedule: Mapping[int, Tensor] | None = None,
    scratch: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Block]:
    """Generate ``frames`` latent frames of shape (C, h, w) for prompt embeddings [B, text, D], block by block.

    ``initial_latents`` [B, whole blocks of frames, C, h, w] open the video unchanged. Prompts of ``prompt_schedule``
    [B, text, D] take over at the block of their number. An archive that needs a file has it in the folder ``scratch``,
    or in that for temporary files. The parts of a block are timed by ``clock``, in seconds. However the rollout ends,
    what the video held is freed. Raises ``NotFiniteError`` for a block with NaN or infinite values.
    """
    given = 0 if initial_latents is None else initial_latents.shape[1]
    if given % block:
        raise ValueError(f"{given} initial latent frames are not whole blocks of {block}")
    cache = new_cache(memory, backbone, block=block, frames=frames, scratch=scratch)
    batch_shape = (len(prompt), block, *shape)
    size = {"block": block, "height": shape[1], "width": shape[2]}
    session = backbone.start(prompt, cache)

    def look_up(index: int, start: int) -> Retrieved:
        return retrieve(
            history,
            memory,
            start=start,
            block=block,
            sink_start=sink_start,
            draft=lambda: draft(
                session, schedule, noise, memory, index=index, start=start, shape=batch_shape, sink_start=sink_start
            ),
            draw=partial(noise.draw, index, -1, (len(prompt), start)),
        )

    recent: deque[Tensor] = deque()  # latents of the blocks that a change of the prompt computes again
    sink_start = 0
    drafts = isinstance(memory, RetrievalMemory) and memory.query == "draft"  # the query is known only block by block
    coming: Retrieved = ([], [])
    moved = 0
    try:
        for index, start in enumerate(range(0, frames, block)):
            watch = Stopwatch(clock)
            if prompt_schedule is not None and index in prompt_schedule:
                recache = recache_of(memory, start=start, sink_start=sink_start)
                session.set_prompt(prompt_schedule[index], start=start if recache is None else recache.first)
                if recache is not None:
                    if recache.sink_start != sink_start:
                        sink_start = recache.sink_start
                        cache.move_sink(sink_start)
                        coming = ([], []) if drafts else look_up(index, start)
                    window = torch.cat([*recent], dim=1)[:, recache.first - start :]
                    session.recache(recache.context, window, start=recache.first, timestep=context_timestep)
                watch.lap("recache")
            retrieved, similarities = look_up(index, start) if drafts else coming
            watch.lap("retrieve")
            context = context_of(memory, start=start, block=block, retrieved=retrieved, sink_start=sink_start)
            session.set_context(context, start=start, **size)
            before, moved = moved, cache.moved
            watch.lap("gather")
            if initial_latents is not None and start < given:
                latents = initial_latents[:, start : start + block].to(session.device, session.dtype)
            else:
                steps = schedule.first_steps if start == given else schedule.steps
                latents = denoise(session, schedule, noise, steps=steps, block=index, shape=batch_shape).contiguous()
                require_finite(latents, index)
            watch.lap("denoise")
            history.append(latents)
            recent.append(latents)
            while memory.window is not None and block * (len(recent) - 1) >= memory.window:
                recent.popleft()
            watch.lap("encode")
            coming = ([], []) if drafts else look_up(index + 1, start + block)
            watch.lap("retrieve")
            session.update_cache(latents, context_timestep, coming[0])
            watch.lap("update_cache")
            yield Block(index, start, latents, retrieved, similarities, moved - before, watch.laps)
    finally:
        session.close()


def denoise(
    session: BackboneSession,
    schedule: FlowMatchSchedule,
    noise: Noise,
    *,
    steps: Tensor,
    block: int,
    shape: tuple[int, ...],
) -> Tensor:
    """Few-step sampling of one block [B, T, C, h, w]: predict x0, add less noise, repeat; the last x0 is the result."""
    device, dtype = session.device, session.dtype
    latents = noise.draw(block, 0, shape).to(device, dtype)
    for step, timestep in enumerate(steps):
        if step > 0:
            latents = schedule.noised(latents, noise.draw(block, step, shape).to(device, dtype), timestep)
        latents = schedule.clean(latents, session.flow(latents, timestep), timestep)
    return latents


def require_finite(latents: Tensor, block: int) -> None:
    """Raise ``NotFiniteError`` if a block has values that are NaN or infinite."""
    if not torch.isfinite(latents).all():
        raise NotFiniteError(f"block {block} has NaN or infinite values", hint="try another dtype: bfloat16 or float32")


def draft(
    session: BackboneSession,
    schedule: FlowMatchSchedule,
    noise: Noise,
    memory: MemoryConfig,
    *,
    index: int,
    start: int,
    shape: tuple[int, ...],
    sink_start: int,
) -> Tensor:
    """A block [B, T, C, h, w] under its prompt with nothing retrieved: x0 of its first denoising step."""
    context = context_of(memory, start=start, block=shape[1], sink_start=sink_start)
    session.set_context(context, start=start, block=shape[1], height=shape[3], width=shape[4])
    latents = noise.draw(index, 0, shape).to(session.device, session.dtype)
    return schedule.clean(latents, session.flow(latents, schedule.steps[0]), schedule.steps[0])


def retrieve(
    history: History,
    memory: MemoryConfig,
    *,
    start: int,
    block: int,
    sink_start: int = 0,
    draft: Callable[[], Tensor],
    draw: Callable[[], Tensor],
) -> Retrieved:
    """Frames that the block at ``start`` attends to again, and their similarities with the query, [B][K].

    The query is the key of the newest frame, or, if the strategy asks for one, of the last frame of a ``draft``
    [B, T, C, h, w]. ``draw`` returns independent random numbers [B, start].
    """
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        return [], []
    pool = retrievable(start=start, window=memory.window, sink=memory.sink, guard=memory.guard)
    if not pool:
        return [], []
    keys = history.keys
    query = history.keys_of(draft()[:, -1:])[:, 0] if memory.query == "draft" else keys[:, -1]
    chosen: slice | Tensor = slice(pool.start, pool.stop)
    frames = torch.arange(pool.start, pool.stop, device=keys.device)
    if sink_start:  # the sink was moved: its frames are attended to, and the first frames of the video can be retrieved
        kept = range(sink_start, sink_start + memory.sink)
        chosen = frames = torch.tensor([frame for frame in range(pool.stop) if frame not in kept], device=keys.device)
    candidates = Candidates(
        frames=frames,
        keys=keys[:, chosen],
        query=query,
        block=block,
        draw=lambda: draw()[:, chosen].to(keys.device),
    )
    positions, similarities = memory.choose(candidates)
    return frames[positions].tolist(), similarities.tolist()


def new_cache(
    memory: MemoryConfig, backbone: Backbone, *, block: int, frames: int, scratch: Path | None = None
) -> WanKVCache:
    """An empty cache with capacity for what a memory can attend to in a video of so many frames."""
    frames = block * math.ceil(frames / block)
    recent = None if memory.window is None else max(memory.window - memory.sink, block)
    archive = None
    if isinstance(memory, RetrievalMemory) and memory.retrieves:
        if memory.archive == "auto":
            raise ValueError("the tier of the archive is not chosen yet")
        archive = new_archive(memory.archive, retrieved=memory.retrieved, frames=frames, folder=scratch)
        if archive is None:  # every frame stays where the window is
            recent = None
    return WanKVCache(layers=backbone.layers, sink=memory.sink, recent=recent, frames=frames, archive=archive)


class Stopwatch:
    """Seconds of named, consecutive parts. On a GPU work is queued, so a lap shows where the host waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.laps: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def lap(self, name: str) -> None:
        """End the part that ran since the last lap."""
        now = self._clock()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
