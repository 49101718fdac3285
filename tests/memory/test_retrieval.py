from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llrag_cli.memory.context import recallable
from llrag_cli.memory.retrieval import nearest


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=60)
@given(
    start=st.integers(0, 80),
    window=st.integers(2, 20),
    sink=st.integers(0, 4),
    guard=st.integers(0, 9),
    count=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_guarded_and_attended_frames_never_come_back(
    start: int, window: int, sink: int, guard: int, count: int, seed: int
) -> None:
    pool = recallable(start=start, window=window, sink=sink, guard=guard)
    if not pool:
        return
    keys = unit(2, start, 8, seed=seed)
    frames, similarities = nearest(keys[:, -1], keys, count=count, candidates=pool)
    assert frames.shape == similarities.shape == (2, min(count, len(pool)))
    assert (frames >= sink).all()
    assert (frames <= start - window + sink - guard - 1).all()
    assert all(len(set(row)) == len(row) for row in frames.tolist())


@given(st.integers(0, 29))
def test_a_repeated_frame_is_found_first(place: int) -> None:
    keys = unit(1, 40, 16, seed=7)
    keys[0, place] = keys[0, -1]
    frames, similarities = nearest(keys[:, -1], keys, count=4, candidates=range(30))
    assert frames[0, 0] == place
    torch.testing.assert_close(similarities[0, 0], torch.tensor(1.0))


def test_similarities_fall() -> None:
    keys = unit(3, 50, 8)
    _, similarities = nearest(keys[:, -1], keys, count=6, candidates=range(1, 40))
    assert (similarities.diff(dim=1) <= 0).all()


def test_the_order_of_a_batch_does_not_matter() -> None:
    keys = unit(3, 50, 8)
    frames, _ = nearest(keys[:, -1], keys, count=6, candidates=range(1, 40))
    turned, _ = nearest(keys.flip(0)[:, -1], keys.flip(0), count=6, candidates=range(1, 40))
    assert torch.equal(turned, frames.flip(0))
