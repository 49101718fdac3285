"""The main path: a prompt becomes latent frames, block by block, for as long as asked.

for each block:
    recalled = past frames most like the newest one                  # history
    context  = [sink | recalled | recent], each at its rotary time   # policy
    latents  = few-step denoising of noise, given context and prompt
    a clean pass leaves the block's keys and values in the cache
    history grows by the block
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llrag_cli.cache.archive import new_archive
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.config import MemoryConfig
from llrag_cli.errors import LlragError
from llrag_cli.memory.context import Context, recallable, retrieval_window, sliding_window
from llrag_cli.memory.history import History
from llrag_cli.memory.retrieval import diverse, drawn, gated, nearest, similarities, spread, successors
from llrag_cli.sampling.noise import Noise
from llrag_cli.sampling.schedule import FlowMatchSchedule

Recalled = tuple[list[list[int]], list[list[float]]]  # frames and their cosines with the query, [B][K]


class Backbone(Protocol):
    """A model that predicts flow given a context of past frames."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def layers(self) -> int: ...
    def begin(self, prompt: Tensor, cache: WanKVCache) -> None: ...
    def read(self, prompt: Tensor) -> None: ...
    def attend(self, context: Context, *, start: int, block: int, height: int, width: int) -> None: ...
    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor: ...
    def remember(self, latents: Tensor, timestep: float, ahead: Sequence[Sequence[int]]) -> None: ...


@dataclass(frozen=True)
class Block:
    """A finished block: latents [B, T, C, H, W] of frames start .. start + T - 1, and how they came about."""

    index: int
    start: int
    latents: Tensor
    recalled: list[list[int]] = field(default_factory=list)  # [B][K], most similar first
    similarities: list[list[float]] = field(default_factory=list)  # [B][K], cosines
    moved: int = 0  # recalled pages that had to be brought to the device, of all videos
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by part


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
    given: Tensor | None = None,
    later_prompts: Mapping[int, Tensor] | None = None,
    scratch: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Block]:
    """Write ``frames`` latent frames of shape (C, H, W) for prompt embeddings [B, text, D], block by block.

    Latents ``given`` [B, whole blocks of frames, C, H, W] open the video as they are; it goes on from them.
    ``later_prompts`` [B, text, D] take over at the block of their number. An archive that needs a file has it in the
    folder ``scratch``, or in that for temporary files. The parts of a block are timed by ``clock``, in seconds. Raises
    ``LlragError`` for a block that is not finite.
    """
    if given is not None and given.shape[1] % block:
        raise ValueError(f"{given.shape[1]} given frames are no whole blocks of {block}")
    cache = new_cache(memory, backbone, block=block, frames=frames, scratch=scratch)
    backbone.begin(prompt, cache)
    batch_shape = (len(prompt), block, *shape)

    def look_back(index: int, start: int) -> Recalled:
        return recall(
            history,
            memory,
            start=start,
            block=block,
            draft=partial(draft, backbone, schedule, noise, memory, block=index, start=start, shape=batch_shape),
            scores=partial(noise.draw, index, -1, (len(prompt), start)),
        )

    ahead = memory.recall != "prompt"  # a draft of the block comes first; all else is known when the last one is done
    coming: Recalled = ([], [])
    moved = 0
    for index, start in enumerate(range(0, frames, block)):
        watch = Stopwatch(clock)
        if later_prompts is not None and index in later_prompts:
            backbone.read(later_prompts[index])
        recalled, cosines = coming
        if not ahead:
            recalled, cosines = look_back(index, start)
            watch.lap("recall")
        context = attended(memory, start=start, block=block, recalled=recalled)
        backbone.attend(context, start=start, block=block, height=shape[1], width=shape[2])
        before, moved = moved, cache.moved
        watch.lap("gather")
        if given is not None and start < given.shape[1]:
            latents = given[:, start : start + block].to(backbone.device, backbone.dtype)
        else:
            latents = denoise(backbone, schedule, noise, block=index, shape=batch_shape).contiguous()
            require_finite(latents, index)
        watch.lap("denoise")
        history.append(latents)
        watch.lap("encode")
        if ahead:
            coming = look_back(index + 1, start + block)
        watch.lap("recall")
        backbone.remember(latents, context_timestep, coming[0])
        watch.lap("remember")
        yield Block(index, start, latents, recalled, cosines, moved - before, watch.laps)


def denoise(
    backbone: Backbone, schedule: FlowMatchSchedule, noise: Noise, *, block: int, shape: tuple[int, ...]
) -> Tensor:
    """Few-step sampling of one block [B, T, C, H, W]: predict x0, noise it less, again; the last x0 stays."""
    device, dtype = backbone.device, backbone.dtype
    latents = noise.draw(block, 0, shape).to(device, dtype)
    for step, timestep in enumerate(schedule.steps):
        if step > 0:
            latents = schedule.noised(latents, noise.draw(block, step, shape).to(device, dtype), timestep)
        latents = schedule.clean(latents, backbone.flow(latents, timestep), timestep)
    return latents


def require_finite(latents: Tensor, block: int) -> None:
    """Raise ``LlragError`` if a block has values that are NaN or infinite."""
    if not torch.isfinite(latents).all():
        raise LlragError(
            f"block {block} came out with values that are not finite",
            hint="weights or `--dtype` are at fault: try `--dtype bfloat16` or float32",
        )


def draft(
    backbone: Backbone,
    schedule: FlowMatchSchedule,
    noise: Noise,
    memory: MemoryConfig,
    *,
    block: int,
    start: int,
    shape: tuple[int, ...],
) -> Tensor:
    """What the prompt asks of a block [B, T, C, H, W] when nothing is recalled: x0 of its first denoising step."""
    context = attended(memory, start=start, block=shape[1], recalled=[])
    backbone.attend(context, start=start, block=shape[1], height=shape[3], width=shape[4])
    latents = noise.draw(block, 0, shape).to(backbone.device, backbone.dtype)
    return schedule.clean(latents, backbone.flow(latents, schedule.steps[0]), schedule.steps[0])


def recall(
    history: History,
    memory: MemoryConfig,
    *,
    start: int,
    block: int,
    draft: Callable[[], Tensor],
    scores: Callable[[], Tensor],
) -> Recalled:
    """Frames to see again in the block at ``start``, and their cosines with the query, [B][K].

    The query is the key of the newest frame; with recall `prompt`, that of the last frame of a ``draft``
    [B, T, C, H, W]. ``scores`` [B, N] are random numbers, for recall `random`.
    """
    if not memory.recalls or memory.window is None:
        return [], []
    candidates = recallable(start=start, window=memory.window, sink=memory.sink, guard=memory.guard)
    if not candidates:
        return [], []
    keys, count = history.keys, memory.retrieved
    query = history.keys_of(draft()[:, -1:])[:, 0] if memory.recall == "prompt" else keys[:, -1]
    if memory.recall in ("nearest", "prompt"):
        frames, cosines = nearest(query, keys, count=count, candidates=candidates)
    elif memory.recall == "successor":
        frames, cosines = successors(query, keys, count=count, candidates=candidates, ahead=block)
    elif memory.recall == "diverse":
        frames, cosines = diverse(query, keys, count=count, candidates=candidates, relevance=memory.relevance)
    elif memory.recall == "gate":
        frames, cosines = gated(query, keys, count=count, candidates=candidates, least=memory.gate)
    else:
        if memory.recall == "random":
            frames = drawn(scores(), count=count, candidates=candidates).to(keys.device)
        else:
            row = spread(count=count, candidates=candidates) if memory.recall == "uniform" else candidates[:count]
            frames = torch.tensor(row, device=keys.device).expand(len(keys), -1)
        cosines = similarities(query, keys).gather(1, frames)
    return frames.tolist(), cosines.tolist()


def attended(memory: MemoryConfig, *, start: int, block: int, recalled: list[list[int]]) -> Context:
    """The context of a block under the configured policy."""
    if memory.policy == "native" or memory.window is None:
        return sliding_window(start=start, block=block, window=memory.window, sink=memory.sink)
    return retrieval_window(
        start=start,
        block=block,
        window=memory.window,
        sink=memory.sink,
        retrieved=memory.retrieved,
        recalled=recalled,
    )


def new_cache(
    memory: MemoryConfig, backbone: Backbone, *, block: int, frames: int, scratch: Path | None = None
) -> WanKVCache:
    """An empty cache with room for what the policy can ask for in a video of so many frames."""
    if memory.archive == "auto":
        raise ValueError("the tier of the archive is not chosen yet")
    frames = block * math.ceil(frames / block)
    recent = None if memory.window is None else max(memory.window - memory.sink, block)
    archive = None
    if memory.recalls:
        archive = new_archive(memory.archive, retrieved=memory.retrieved, frames=frames, folder=scratch)
        if archive is None:  # every frame stays where the window is
            recent = None
    return WanKVCache(layers=backbone.layers, sink=memory.sink, recent=recent, frames=frames, archive=archive)


class Stopwatch:
    """Seconds of named parts, one after the other. On a GPU work is queued, so laps tell where it waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.laps: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def lap(self, name: str) -> None:
        """Close the part that ran since the last lap."""
        now = self._clock()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
