"""What each block of a clip of several shots attends to, as the engine does it after a switch and after a cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llrag_cli.memory.candidates import cosine_similarities, top
from llrag_cli.memory.context import context_of, recache_of, retrievable
from llrag_cli.memory.strategies import MemoryConfig, Nearest, SlidingWindow
from llrag_cli.training.embedded.scene_clips import Change
from llrag_cli.training.embedded.teacher_forcing import Row

WINDOW, SINK, GUARD = 12, 1, 2
NO_PROMPT = -1  # the number of the empty prompt


@dataclass(frozen=True)
class SceneRow:
    """One block from latent frame ``start`` of a clip on, under one of the clip's prompts."""

    start: int
    prompt: int
    row: Row


@dataclass
class Rows:
    """The rows of a clip as they come; ``page`` says which clean frame holds the keys and values of a latent frame."""

    block: int
    clean: list[SceneRow] = field(default_factory=list)
    noisy: list[SceneRow] = field(default_factory=list)
    page: dict[int, int] = field(default_factory=dict)

    def row(self, frames: Sequence[int], times: Sequence[float], start_time: int, *, own: range | None = None) -> Row:
        """A row that attends to latent frames of the clip as they are in memory now."""
        return Row(tuple(self.page[frame] for frame in frames), tuple(times), start_time, own)

    def windowed(self, memory: SlidingWindow, start: int) -> Row:
        """The row of the block at latent frame ``start`` in the sliding window."""
        context = context_of(memory, start=start, block=self.block)
        return self.row(context.shared, context.shared_times, context.start_time)

    def store(self, start: int, prompt: int, row: Row) -> None:
        """A clean pass: the keys and values of the block's own frames go to memory."""
        self.assign(start, own=row.own)
        self.clean.append(SceneRow(start, prompt, row))

    def assign(self, start: int, *, own: range | None = None, ahead: int = 0) -> None:
        """Say that the keys and values of a block are those of the clean row that is ``ahead`` of the next one."""
        first = self.block * (len(self.clean) + ahead)
        self.page.update({start + offset: first + offset for offset in own or range(self.block)})

    def denoise(self, start: int, prompt: int, row: Row, *, copies: int) -> None:
        """Noisy copies of a block."""
        self.noisy += [SceneRow(start, prompt, row)] * copies


def nearest_or_random(
    rng: random.Random, keys: Tensor, query: int, pool: Sequence[int], count: int, *, alike: bool
) -> list[int]:
    """At most ``count`` latent frames of a pool: those most like frame ``query``, by ``keys`` [F, D], or any."""
    if not pool:
        return []
    if alike:
        positions, _ = top(cosine_similarities(keys[None, query], keys[None, list(pool)]), count)
        return [pool[position] for position in positions[0].tolist()]
    wanted = count if rng.random() < 0.7 else rng.randint(0, count)
    return rng.sample(list(pool), min(wanted, len(pool)))


def memory_of(*, retrieved: int) -> MemoryConfig:
    """The memory of a rollout that retrieves so many frames; 0 is the plain window."""
    if retrieved == 0:
        return SlidingWindow(window=WINDOW, sink=SINK)
    return Nearest(window=WINDOW, sink=SINK, retrieved=retrieved, guard=GUARD)


def switch_rows(
    rng: random.Random,
    keys: Tensor,
    *,
    shots: tuple[int, ...],
    block: int,
    memory: MemoryConfig,
    copies: Sequence[int],
    late: int | None = None,
) -> Rows:
    """A video under prompt 0, whose recent frames are computed again under prompt 1, with which it goes on.

    ``copies`` are the noisy copies of each block of the second shot. Rotary times are ``late`` by so many frames, as if
    later in a longer video; None: at random.
    """
    rows, retrieved = Rows(block), getattr(memory, "retrieved", 0)
    switch = block * shots[1]
    recache = recache_of(memory, start=switch)
    assert recache is not None
    shifted = 0 if retrieved or recache.first == 0 else rng.choice((0, rng.randrange(300))) if late is None else late
    alike = rng.random() < 0.6

    def look_back(start: int, late: int) -> Row:
        pool = retrievable(start=start, window=WINDOW, sink=SINK, guard=GUARD) if retrieved else range(0)
        chosen = nearest_or_random(rng, keys, start - 1, pool, retrieved, alike=alike)
        context = context_of(memory, start=start, block=block)
        times = [time if time < SINK else time + late for time in context.shared_times]
        return rows.row([*context.shared, *chosen], [*times, *[0] * len(chosen)], context.start_time + late)

    for start in range(0, recache.first, block):  # frames from `recache.first` on will be overwritten
        rows.store(start, 0, look_back(start, 0))
    again = [
        (start, range(max(0, recache.first - start), block))
        for start in range(recache.first // block * block, switch, block)
    ]
    for ahead, (start, own) in enumerate(again):
        rows.assign(start, own=own, ahead=ahead)
    shift = recache.context.start_time + shifted - recache.first  # from frames to times
    for start, own in again:
        others = [frame for frame in range(recache.first, switch) if not start <= frame < start + block]
        times = [*recache.context.shared_times, *(frame + shift for frame in others)]
        row = rows.row([*recache.context.shared, *others], times, start + shift, own=own)
        rows.clean.append(SceneRow(start, 1, row))
    for number, start in enumerate(range(switch, block * shots[2], block)):
        row = look_back(start, shifted)
        rows.denoise(start, 1, row, copies=copies[number])
        if start + block < block * shots[2]:
            rows.store(start, 1, row)
    return rows


def cut_rows(
    rng: random.Random,
    keys: Tensor,
    *,
    shots: tuple[int, ...],
    block: int,
    memory: MemoryConfig,
    change: Change,
    copies: Sequence[Sequence[int]],
) -> Rows:
    """Three shots under prompts 0, 1 and 2; the last may attend to frames of the first, of the second, or of both.

    In some clips the first is a reference instead, encoded alone under its own caption or the empty prompt.
    ``copies`` are the noisy copies of each block of the second and of the third shot.
    """
    rows, retrieved = Rows(block), getattr(memory, "retrieved", 0)
    edges = [block * shot for shot in shots]
    reference = rng.random() < 0.25
    first = list(range(edges[0], edges[1]))
    other = list(range(edges[1], edges[2]))
    if reference:
        length = rng.choice((1, 1, 2, block, 2 * block, len(first)))
        prompt = rng.choice((0, NO_PROMPT))
        for start in range(0, edges[1], block):
            own = range(length) if length < block else None  # a picture is a block of one frame
            seen = [frame for frame in range(start) if frame in rows.page]
            rows.store(start, prompt, rows.row(seen, seen, start, own=own if start == 0 else None))
        first = first[:length]
    else:
        _shot(rows, rng, keys, 0, edges, memory, sink=None, pool=[], retrieved=0, alike=False, copies=())
    keeps = not reference and rng.random() < 0.5
    pool = first if rng.random() < 0.5 else []
    alike = rng.random() < 0.4
    _shot(
        rows,
        rng,
        keys,
        1,
        edges,
        memory,
        sink=0 if keeps else None,
        pool=pool,
        retrieved=retrieved,
        alike=alike,
        copies=copies[0],
    )
    if change in ("elsewhere", "wall", "object"):
        pools = [first] * 7 + [[*first, *other]] * 2 + [[]]
    else:
        pools = [first, other, [*first, *other], []]
    pool = rng.choice(pools)
    alike = len(pool) > len(first) or rng.random() < 0.4
    sink = edges[1] if reference else 0
    keeps = rng.random() < (0.7 if sink in pool else 0.1)
    _shot(
        rows,
        rng,
        keys,
        2,
        edges,
        memory,
        sink=sink if keeps else None,
        pool=pool,
        retrieved=retrieved,
        alike=alike,
        copies=copies[1],
    )
    return rows


def _shot(
    rows: Rows,
    rng: random.Random,
    keys: Tensor,
    number: int,
    edges: Sequence[int],
    memory: MemoryConfig,
    *,
    sink: int | None,
    pool: Sequence[int],
    retrieved: int,
    alike: bool,
    copies: Sequence[int],
) -> None:
    """A shot with a clock of its own: it begins at time 0, or at 1 after the sink that it keeps."""
    begin, end, last = edges[number], edges[number + 1], number + 2 == len(edges)
    kept = 0 if sink is None else SINK
    sunk = begin if sink is None else sink
    for index, start in enumerate(range(begin, end, rows.block)):
        context = context_of(memory, start=start - begin + kept, block=rows.block)
        own = [begin + frame - kept if frame >= kept else sunk for frame in context.shared]
        query = start + rows.block - 1 if index == 0 else start - 1
        chosen = nearest_or_random(rng, keys, query, pool, retrieved, alike=alike)
        row = rows.row([*own, *chosen], [*context.shared_times, *[0] * len(chosen)], context.start_time)
        if copies:
            rows.denoise(start, number, row, copies=copies[index])
        if not (last and start + rows.block == end):
            rows.store(start, number, row)
