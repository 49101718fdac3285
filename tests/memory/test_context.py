from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llrag_cli.memory.context import retrievable, retrieval_window, sliding_window

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
    assert full.retrieved_time == 0
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
