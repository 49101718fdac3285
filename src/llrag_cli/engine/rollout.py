"""The main path: a prompt becomes latent frames, block by block, for as long as asked.

for each block:
    retrieved = past frames most like the newest one                  # history, memory strategy
    context   = [sink | retrieved | recent], each at its rotary time  # context policy
    latents   = few-step denoising of noise, given context and prompt
    a clean pass stores the block's keys and values in the cache      # in the same context, or by a commit rule
    history grows by the block
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.cache.archive import new_archive
from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import Observer, WanKVCache
from llrag_cli.cache.sharing import Sharing
from llrag_cli.engine.shots import Change, Cursor, Reference, reference_spans
from llrag_cli.errors import NotFiniteError
from llrag_cli.files.transfer import HostCopy, to_device
from llrag_cli.memory.candidates import Candidates, attention_mass
from llrag_cli.memory.context import candidate_frames, retrieval_window
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
    def set_prompt(self, prompt: Tensor) -> None: ...
    def set_context(self, context: Context, *, start: int, block: int, height: int, width: int) -> None: ...
    def set_reading(self, *, retrieved: bool) -> None: ...
    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor: ...
    def recache(self, context: Context, latents: Tensor, *, start: int, timestep: float) -> None: ...
    def update_cache(self, latents: Tensor, timestep: float, prefetch: Sequence[Sequence[int]] = ()) -> None: ...
    def close(self) -> None: ...


class Backbone(Protocol):
    """Frozen weights that videos are generated with."""

    @property
    def layers(self) -> int: ...
    @property
    def sharing(self) -> Sharing: ...
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
    cut: bool = False  # it begins a new picture
    decode: Callable[[Block], Tensor] | None = field(default=None, repr=False)

    @property
    def frames(self) -> Tensor:
        """Video frames [B, t, 3, H, W] in [-1, 1], decoded on first access."""
        if self.decode is None:
            raise RuntimeError("this block belongs to no session, so nothing decodes its latents")
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
    changes: Mapping[int, Change] | None = None,
    references: Sequence[Reference] = (),
    pinned: int = 0,
    scratch: Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Block]:
    """Generate ``frames`` latent frames of shape (C, h, w) for prompt embeddings [B, text, D], block by block.

    Each of the ``changes`` takes effect at the block of its number; one can be entered while the video is generated.
    Blocks that a change gives pass unchanged, with a clean pass at timestep 0, and so do ``references`` before the
    first block; the last ``pinned`` frames of them can be pinned. ``initial_latents`` [B, whole blocks of frames, C, h,
    w] are those that an earlier rollout of this video wrote, and are treated as they were then.

    An archive that needs a file has it in the folder ``scratch``, or in that for temporary files. The parts of a block
    are timed by ``clock``, in seconds. However the rollout ends, what the video held is freed. Raises
    ``NotFiniteError`` for a block with NaN or infinite values.
    """
    known = 0 if initial_latents is None else initial_latents.shape[1]
    changes = {} if changes is None else changes
    for given in (initial_latents, *(change.given for change in changes.values())):
        if given is not None and given.shape[1] % block:
            raise ValueError(f"{given.shape[1]} latent frames are not whole blocks of {block}")
    spans = reference_spans([reference.latents.shape[1] for reference in references])
    cache = new_cache(
        memory, backbone, block=block, frames=frames, references=sum(map(len, spans)), pinned=pinned, scratch=scratch
    )
    session = backbone.start(prompt, cache)
    cursor = Cursor(memory, noise, block=block, references=spans)
    drafts = isinstance(memory, RetrievalMemory) and memory.query == "draft"
    reading = memory.read_steps if isinstance(memory, RetrievalMemory) else None
    layer = memory.attention_layer(backbone.layers) if isinstance(memory, RetrievalMemory) else None
    observer = None if layer is None else cache.observe(layer)  # then frames are found by attention
    asked: Tensor | None = None  # the query of the newest block
    coming: Retrieved | None = None  # where the query is known before the block begins
    moved = 0

    def set_context(context: Context, start: int) -> None:
        session.set_context(context, start=start, block=block, height=shape[1], width=shape[2])

    def look_up(index: int) -> Retrieved:
        return retrieve(
            history,
            memory,
            cursor,
            start=index * block,
            references=range(-sum(map(len, spans)), -pinned),
            draft=partial(draft, index) if drafts or cursor.opens(index * block) else None,
            attention=None if observer is None else Attention(observer, asked),
            draw=lambda: cursor.draw(index, -1, (len(prompt), len(history))),
        )

    def draft(index: int) -> Tensor:
        given = cursor.given(index * block)
        if given is not None:
            return to_device(given, session.device, session.dtype)
        set_context(cursor.context(index * block), index * block)
        batch_shape = (len(prompt), block, *shape)
        return denoise(session, schedule, cursor, steps=schedule.steps[:1], block=index, shape=batch_shape)

    try:
        for reference, span in zip(references, spans, strict=True):
            store(reference, span, session, history, memory, block=block, observer=observer)
        if references:
            session.set_prompt(prompt)
        for index, start in enumerate(range(0, frames, block)):
            watch = Stopwatch(clock)
            change = changes.get(index)
            if change is not None:
                coming = None
                cursor.begin(change, index)
                session.set_prompt(change.prompt)
                recache = cursor.recache(start)
                cache.move_sink(cursor.stretch.sink_start)
                for again, window in recache:
                    session.recache(again.context, window, start=again.first, timestep=context_timestep)
                watch.lap("recache")
            if memory.sink_decay is not None:
                cache.average_into_sink(cursor.leaving(start), memory.sink_decay)
            retrieved, similarities = coming or look_up(index)
            watch.lap("retrieve")
            set_context(cursor.context(start, retrieved), start)
            before, moved = moved, cache.moved
            watch.lap("gather")
            given, finite = cursor.given(start), None
            if initial_latents is not None and start < known:
                latents = to_device(initial_latents[:, start : start + block], session.device, session.dtype)
            elif given is not None:
                latents = to_device(given, session.device, session.dtype)
            else:
                steps = schedule.first_steps if start == cursor.generated_from else schedule.steps
                batch_shape = (len(prompt), block, *shape)
                latents = denoise(
                    session, schedule, cursor, steps=steps, block=index, shape=batch_shape, reading=reading
                ).contiguous()
                finite = HostCopy(torch.isfinite(latents).all())
            watch.lap("denoise")
            if observer is None:
                history.append(latents)
            cursor.add(latents)
            watch.lap("encode")
            last = start + block >= frames
            late = drafts or observer is not None  # the query is known later
            coming = None if late or last or index + 1 in changes else look_up(index + 1)
            watch.lap("retrieve")
            commit = cursor.commit_context(start)
            if commit is not None:
                set_context(commit, start)
            session.update_cache(latents, context_timestep if given is None else 0.0, coming[0] if coming else ())
            if finite is not None:  # read when the clean pass is queued, so that a GPU has work meanwhile
                require_finite(finite, index)
            watch.lap("update_cache")
            if observer is not None:
                history.append_keys(observer.keys)
                asked = observer.query
                watch.lap("encode")
            cut = change is not None and change.cut and index > 0
            yield Block(index, start, latents, retrieved, similarities, moved - before, watch.laps, cut)
    finally:
        session.close()


def store(
    reference: Reference,
    span: range,
    session: BackboneSession,
    history: History,
    memory: MemoryConfig,
    *,
    block: int,
    observer: Observer | None = None,
) -> None:
    """Pass a reference through the backbone, once, as the frames of a span of numbers.

    It passes in blocks, the last of which may be shorter, at timestep 0. Each attends to itself and to the frames of
    the reference before it that the window without its sink holds, or those of the memory's commit rule, on a clock
    that starts with the reference.
    """
    count, (height, width) = len(span), reference.latents.shape[3:]
    plain = count if memory.window is None else max(memory.window - memory.sink, block)
    session.set_prompt(reference.prompt)
    for offset in range(0, count, block):
        latents = to_device(reference.latents[:, offset : offset + block], session.device, session.dtype)
        size = latents.shape[1]
        window = max(memory.commit_reach(size) or plain, size)
        context = retrieval_window(start=offset, block=size, window=window, sink=0, count=0)
        context = replace(context, shared=tuple(span[frame] for frame in context.shared))
        session.set_context(context, start=span[offset], block=size, height=height, width=width)
        session.update_cache(latents, 0.0)
        if observer is None:
            history.append(latents)
        else:
            history.append_keys(observer.keys)


def denoise(
    session: BackboneSession,
    schedule: FlowMatchSchedule,
    noise: Noise,
    *,
    steps: Tensor,
    block: int,
    shape: tuple[int, ...],
    reading: int | None = None,
) -> Tensor:
    """Few-step sampling of one block [B, T, C, h, w]: predict x0, add less noise, repeat; the last x0 is the result.

    The last ``reading`` steps attend to retrieved frames; None: all do.
    """
    device, dtype = session.device, session.dtype
    latents = to_device(noise.draw(block, 0, shape), device, dtype)
    for step, timestep in enumerate(steps):
        if step > 0:
            latents = schedule.noised(latents, to_device(noise.draw(block, step, shape), device, dtype), timestep)
        if reading is not None:
            session.set_reading(retrieved=step >= len(steps) - reading)
        latents = schedule.clean(latents, session.flow(latents, timestep), timestep)
    return latents


def require_finite(finite: HostCopy, block: int) -> None:
    """Raise ``NotFiniteError`` unless all values of a block are finite, neither NaN nor infinite."""
    if not finite.tolist():
        raise NotFiniteError(
            f"block {block} has NaN or infinite values",
            hint="try another dtype, bfloat16 or float32; in float32 too, the weights are damaged",
        )


@dataclass(frozen=True)
class Attention:
    """How a block asks for frames by attention: with the mean queries of one layer."""

    observer: Observer
    newest: Tensor | None  # [B, heads * D], of the newest block; None before the first

    def query(self, draft: Callable[[], Tensor] | None) -> Tensor:
        """The query of the newest block, or of the pass over a draft."""
        if draft is not None:
            draft()
            return self.observer.query
        assert self.newest is not None
        return self.newest


def retrieve(
    history: History,
    memory: MemoryConfig,
    cursor: Cursor,
    *,
    start: int,
    references: range = range(0),
    draft: Callable[[], Tensor] | None = None,
    draw: Callable[[], Tensor],
    attention: Attention | None = None,
) -> Retrieved:
    """Frames that the block at ``start`` attends to again, and their similarities with the query, [B][K].

    The query is the key of the newest frame, or of the last frame of a ``draft`` [B, T, C, h, w]: if the strategy asks
    for one, and where no frame of the block's picture is there yet. ``references`` are the numbers of frames that come
    before the video. ``draw`` returns independent random numbers [B, frames in the history]. With ``attention``, the
    query is that of the newest block, or of the draft.
    """
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        return [], []
    free = memory.retrieved - len(cursor.pinned)
    pool = candidate_frames(
        memory,
        cursor.stretch,
        start=start,
        references=references,
        shot=cursor.first_block * cursor.block,
        remembered=None if cursor.shot is None else cursor.shot.remembered,
    )
    if not pool or not free:
        return [], []
    keys, before = history.keys, len(history) - start  # frames of references come first in the history
    device = keys.device
    chosen: slice | Tensor
    if isinstance(pool, range):  # then no index travels to the device
        frames, chosen = torch.arange(pool.start, pool.stop, device=device), slice(pool.start, pool.stop)
    else:
        frames = to_device(torch.tensor(pool), device)
        chosen = frames + before
    known, mass = keys[:, chosen], None
    if attention is not None:
        query = attention.query(draft)
        mass = attention_mass(query, known, heads=attention.observer.heads)
        known = known - known.mean(dim=1, keepdim=True)  # what all keys have in common changes no share
        query, known = F.normalize(query, dim=-1), F.normalize(known, dim=-1)
    else:
        query = keys[:, -1] if draft is None else history.keys_of(draft()[:, -1:])[:, 0]
    candidates = Candidates(
        frames=frames,
        groups=torch.bucketize(frames, to_device(torch.tensor(cursor.origins), device), right=True),
        keys=known,
        query=query,
        block=cursor.block,
        draw=lambda: to_device(draw(), device)[:, chosen],
        mass=mass,
    )
    if free < memory.retrieved:
        memory = memory.model_copy(update={"retrieved": free})
    positions, similarities = memory.choose(candidates)
    both = HostCopy(torch.stack((frames[positions].double(), similarities.double())))  # exact, and waited for once
    retrieved, cosines = both.tolist()
    return [[int(frame) for frame in row] for row in retrieved], cosines


def new_cache(
    memory: MemoryConfig,
    backbone: Backbone,
    *,
    block: int,
    frames: int,
    references: int,
    pinned: int,
    scratch: Path | None,
) -> WanKVCache:
    """An empty cache with capacity for what a memory can attend to in a video of so many frames.

    So many frames of ``references`` come before it, of which the last ``pinned`` can be attended to at any time.
    """
    frames = block * math.ceil(frames / block)
    recent = window = None if memory.recent_frames is None else max(memory.recent_frames, block)
    attended = without = frames if memory.window is None else min(frames, memory.window)
    unread = 0
    archive = None
    if isinstance(memory, RetrievalMemory) and memory.retrieves:
        if memory.archive == "auto":
            raise ValueError("the tier of the archive is not chosen yet")
        unread = memory.unread_layers(backbone.layers)
        without = max(attended - memory.retrieved, min(attended, memory.commit_reach(block) or 0))
        archive = new_archive(
            memory.archive,
            retrieved=memory.retrieved,
            frames=frames + references,
            first=-references,
            folder=scratch,
        )
        if archive is None:  # every frame stays where the window is
            recent = None
    return WanKVCache(
        layers=backbone.layers,
        sink=memory.sink,
        recent=recent,
        commit_sink=memory.sink if memory.commit == "full" else 0,
        unread=unread,
        unread_recent=window,
        frames=frames,
        references=references,
        pinned=pinned,
        archive=archive,
        attended=attended,
        unread_attended=without,
        sharing=backbone.sharing,
        alignment=memory.alignment if isinstance(memory, RetrievalMemory) else 0.0,
    )


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
