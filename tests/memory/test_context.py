from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llrag_cli.cache.context import Context
from llrag_cli.memory.context import (
    Stretch,
    attended,
    candidate_frames,
    retrievable,
    retrieval_window,
    retrieved_times,
    sliding_window,
)
from llrag_cli.memory.strategies import Nearest

COUNTS = {"window": st.integers(6, 16), "sink": st.integers(0, 3), "block": st.sampled_from([1, 3])}


@given(number=st.integers(0, 30), **COUNTS)
def test_the_sliding_window_holds_sink_and_newest(number: int, window: int, sink: int, block: int) -> None:
    start = number * block
    context = sliding_window(start=start, block=block, window=window, sink=sink)
    frames = context.shared
    assert len(frames) == min(start, window - block)
    assert frames[: min(sink, start)] == tuple(range(min(sink, start)))
    assert frames[min(sink, start) :] == tuple(range(start - (len(frames) - min(sink, start)), start))
    assert context.shared_times == frames
    assert context.start_time == start


def test_without_end_everything_is_seen() -> None:
    assert sliding_window(start=60, block=3, window=None, sink=1).shared == tuple(range(60))


@given(number=st.integers(0, 30), **COUNTS)
def test_with_nothing_retrieved_retrieval_sees_the_same_frames_as_the_window(
    number: int, window: int, sink: int, block: int
) -> None:
    start = number * block
    sink = min(sink, block)
    plain = sliding_window(start=start, block=block, window=window, sink=sink)
    relative = retrieval_window(start=start, block=block, window=window, sink=sink, count=0)
    assert relative.shared == plain.shared
    if start + block <= window:
        assert relative == plain  # until the window rolls, times are the same too


def test_retrieval_at_the_released_settings() -> None:
    """Window 12, sink 1, K 6: the local part is 5 frames, 2 of them past, from the third block on."""
    full = retrieval_window(start=30, block=3, window=12, sink=1, count=6, retrieved=[[4, 2, 9, 1, 7, 3]])
    assert full.shared == (0, 28, 29)
    assert full.shared_times == (0, 7, 8)
    assert full.start_time == 9
    assert full.retrieved_times == ((0,) * 6,)
    assert full.frame_count + 3 == 12
    early = retrieval_window(start=6, block=3, window=12, sink=1, count=6)
    assert early.shared == (0, 4, 5)
    assert early.start_time == 6


def test_a_local_part_shorter_than_the_block_hides_its_first_frames() -> None:
    assert retrieval_window(start=30, block=3, window=6, sink=1, count=3).hidden == range(1)
    assert retrieval_window(start=30, block=3, window=6, sink=1, count=5).hidden == range(3)
    assert retrieval_window(start=0, block=3, window=6, sink=1, count=4).hidden == range(1, 2)
    assert len(retrieval_window(start=30, block=3, window=12, sink=1, count=6).hidden) == 0


@given(number=st.integers(0, 40), guard=st.integers(0, 6), **COUNTS)
def test_what_can_be_retrieved_is_not_attended_anyway(
    number: int, guard: int, window: int, sink: int, block: int
) -> None:
    start = number * block
    pool = retrievable(start=start, window=window, sink=sink, guard=guard)
    seen = sliding_window(start=start, block=block, window=window, sink=sink).shared
    assert set(pool).isdisjoint(seen)


def test_the_first_retrieval_at_the_released_settings() -> None:
    counts = {start: len(retrievable(start=start, window=12, sink=1, guard=5)) for start in range(0, 30, 3)}
    assert counts == {0: 0, 3: 0, 6: 0, 9: 0, 12: 0, 15: 0, 18: 1, 21: 4, 24: 7, 27: 10}


def test_a_sink_that_was_moved_has_the_times_of_its_slots() -> None:
    context = retrieval_window(start=30, block=3, window=12, sink=2, count=4, retrieved=[[4, 2]], sink_start=9)
    assert context.shared == (9, 10, 27, 28, 29)
    assert context.shared_times == (0, 1, 6, 7, 8)
    plain = sliding_window(start=30, block=3, window=12, sink=2, sink_start=9)
    assert plain.shared == plain.shared_times == (9, 10, 23, 24, 25, 26, 27, 28, 29)


# --- the times of retrieved frames ------------------------------------------------------------------


def times_of(rule: str, frames: list[int], *, start: int = 30, block: int = 3, **more: int) -> tuple[float, ...]:
    memory = Nearest(window=12, sink=more.pop("sink", 1), retrieved=6, times=rule)  # type: ignore[arg-type]
    start_time = more.pop("start_time", min(start, 12 - block))
    (row,) = retrieved_times(memory, [frames], start=start, block=block, start_time=start_time, **more)
    return row


def test_collapsed_times_are_all_0() -> None:
    assert times_of("collapsed", [4, 2, 9, 1, 7, 3]) == (0, 0, 0, 0, 0, 0)
    assert times_of("collapsed", [-2, 5]) == (0, 0)


def test_ordered_times_are_the_free_slots_by_rank() -> None:
    assert times_of("ordered", [4, 2, 9, 1, 7, 3]) == (4, 2, 6, 1, 5, 3)
    assert times_of("ordered", [9, 4]) == (2, 1)  # fewer than K: the first free slots
    assert times_of("ordered", [2000, 40, 3, 2999, 7, 900], start=3600) == (5, 3, 1, 6, 2, 4)
    assert times_of("ordered", [4, 2, 9, 1, 7, 3], block=1) == (4, 2, 6, 1, 5, 3)
    assert times_of("ordered", [4, 3, 9], sink=3) == (4, 3, 5)
    assert times_of("ordered", [4, -2, 9, -1], since=-3) == (3, 1, 4, 2)


def test_interpolated_times_are_by_when_a_frame_was_made() -> None:
    """Slots 1 to 6 are free, and the oldest local frame is 28 in slot 7; with blocks of one frame it is 26."""
    assert times_of("interpolated", [14, 7, 21]) == (4, 2.5, 5.5)
    assert times_of("interpolated", [13], block=1) == (4,)
    assert times_of("interpolated", [1799], start=3600) == (1 + 6 * 1799 / 3598,)
    assert times_of("interpolated", [14], sink=3, start=28) == (3 + 6 * 14 / 28,)  # no local frames but the block's
    assert times_of("interpolated", [12, -4], since=-4) == (1 + 6 * 16 / 32, 1)


def test_times_are_packed_where_few_slots_are_free() -> None:
    """Blocks may retrieve before their window is full: from references, and after a cut."""
    assert times_of("ordered", [-2, -1], start=0, since=-2) == (0, 0)
    assert times_of("ordered", [-2, -1], start=3, since=-2) == (1, 1)  # local frames begin right after the sink
    assert times_of("ordered", [-3, -1, -2], start=6, since=-3) == (1, 2, 1.5)  # slots 1 to 3 of 6 are free
    assert times_of("interpolated", [-4, 0], start=6, since=-4) == (1, 1 + 3 * 4 / 8)
    assert times_of("interpolated", [15, 5], start=30, start_time=1) == (1, 1)  # the first block after a cut


@pytest.mark.parametrize("rule", ["ordered", "interpolated"])
@given(
    number=st.integers(0, 400),
    cut=st.integers(0, 30),
    references=st.integers(0, 5),
    count=st.integers(1, 6),
    seed=st.randoms(use_true_random=False),
    **COUNTS,
)
def test_retrieved_frames_come_between_sink_and_local_part(
    rule: str, number: int, cut: int, references: int, count: int, seed: Any, window: int, sink: int, block: int
) -> None:
    sink = min(sink, block)
    count = min(count, window - sink - block)
    memory = Nearest(window=window, sink=sink, retrieved=count, times=rule)  # type: ignore[arg-type]
    stretch = Stretch() if cut == 0 else Stretch().cut(cut * block, keep=sink)
    start = (cut + number) * block
    plain = attended(memory, stretch, start=start, block=block)
    pool = [frame for frame in range(-references, start) if frame not in plain.shared]
    pool = [
        frame for frame in pool if frame < min((f for f in plain.shared if f >= stretch.origin + sink), default=start)
    ]
    rows = [seed.sample(pool, min(count, len(pool))) for _ in range(2)]
    context = attended(memory, stretch, start=start, block=block, retrieved=rows, since=-references)
    assert (context.shared, context.shared_times, context.start_time) == (
        plain.shared, plain.shared_times, plain.start_time,
    )  # fmt: skip
    sunken = min(sink, plain.start_time)
    local = [*plain.shared_times, plain.start_time][sunken]
    for row, times in zip(rows, context.retrieved_times, strict=False):
        by_age = [time for _, time in sorted(zip(row, times, strict=True))]
        assert by_age == sorted(by_age)
        assert all(sunken <= time < local or time == sunken == local for time in by_age)
        assert sunken == local or len(set(by_age)) == len(by_age)


def test_a_context_needs_a_time_for_each_frame() -> None:
    with pytest.raises(ValueError, match="one time"):
        Context((0, 1), (0,), 2)
    with pytest.raises(ValueError, match="one time"):
        Context((), (), 2, retrieved=((0, 1),), retrieved_times=((0,),))


def test_a_shot_may_retrieve_its_own_first_frame() -> None:
    """Of a shot that may remember nothing before it, frames from its first one on are candidates."""
    memory = Nearest(window=6, sink=1, retrieved=2, guard=0)
    found = candidate_frames(memory, Stretch(), start=30, shot=9, remembered=())
    assert list(found) == [*range(9, 25)]
    some = candidate_frames(memory, Stretch(), start=30, shot=9, remembered=(range(3, 5),))
    assert list(some) == [3, 4, *range(9, 25)]
