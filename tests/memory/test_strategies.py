from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llrag_cli.memory.candidates import Candidates, cosine_similarities
from llrag_cli.memory.context import retrievable
from llrag_cli.memory.encoder import EncoderConfig
from llrag_cli.memory.strategies import (
    Diverse,
    Gate,
    Nearest,
    Random,
    RetrievalMemory,
    SlidingWindow,
    Spaced,
    Successor,
    Uniform,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def chosen(
    memory: RetrievalMemory, query: Tensor, keys: Tensor, pool: range, scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Frames and similarities [B, K] that a strategy chooses from the frames of a pool."""
    candidates = Candidates(
        frames=torch.arange(pool.start, pool.stop),
        keys=keys[:, pool.start : pool.stop],
        query=query,
        block=3,
        draw=lambda: torch.randn(len(keys), len(pool)) if scores is None else scores[:, pool.start : pool.stop],
    )
    positions, similarities = memory.choose(candidates)
    return candidates.frames[positions], similarities


def nearest(query: Tensor, keys: Tensor, *, count: int, candidates: range) -> tuple[Tensor, Tensor]:
    return chosen(Nearest(retrieved=count), query, keys, candidates)


@settings(max_examples=60)
@given(
    start=st.integers(0, 80),
    local=st.integers(1, 16),
    sink=st.integers(0, 4),
    guard=st.integers(0, 9),
    count=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_guarded_and_attended_frames_never_come_back(
    start: int, local: int, sink: int, guard: int, count: int, seed: int
) -> None:
    window = sink + local  # as a configuration must be
    pool = retrievable(start=start, window=window, sink=sink, guard=guard)
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


def test_all_relevance_and_no_variety_is_the_nearest() -> None:
    keys = unit(3, 40, 8)
    frames, cosines = chosen(Diverse(retrieved=5, relevance=1.0), keys[:, -1], keys, range(1, 35))
    expected = nearest(keys[:, -1], keys, count=5, candidates=range(1, 35))
    assert torch.equal(frames, expected[0])
    torch.testing.assert_close(cosines, expected[1])


def test_variety_takes_one_of_each_kind_first() -> None:
    """Ten copies of what the query shows and one of something half like it: the second choice is the other thing."""
    query = F.normalize(torch.tensor([[1.0, 0.0, 0.0]]), dim=-1)
    other = F.normalize(torch.tensor([0.7, 0.7, 0.0]), dim=-1)
    keys = query[:, None].repeat(1, 11, 1)
    keys[0, 4] = other
    frames, _ = chosen(Diverse(retrieved=2, relevance=0.4), query, keys, range(11))
    assert 4 in frames[0].tolist()
    assert 4 not in nearest(query, keys, count=2, candidates=range(11))[0][0].tolist()


@given(st.integers(1, 9), st.floats(-1, 1), st.integers(0, 20))
def test_a_gate_fills_up_with_the_earliest_frames(count: int, least: float, seed: int) -> None:
    keys, pool = unit(2, 30, 6, seed=seed), range(2, 25)
    frames, cosines = chosen(Gate(retrieved=count, threshold=least), keys[:, -1], keys, pool)
    best, values = nearest(keys[:, -1], keys, count=count, candidates=pool)
    for row in range(2):
        passed = int((values[row] >= least).sum())
        assert frames[row, :passed].tolist() == best[row, :passed].tolist()
        left = [frame for frame in pool if frame not in frames[row, :passed].tolist()]
        assert frames[row, passed:].tolist() == left[: count - passed]
    torch.testing.assert_close(cosines, cosine_similarities(keys[:, -1], keys).gather(1, frames))


@given(count=st.integers(1, 12), first=st.integers(0, 5), size=st.integers(1, 60))
def test_spread_frames_lie_apart(count: int, first: int, size: int) -> None:
    pool = range(first, first + size)
    keys = unit(1, first + size, 4)
    frames = chosen(Uniform(retrieved=count), keys[:, -1], keys, pool)[0][0].tolist()
    assert len(frames) == min(count, size)
    assert set(frames) <= set(pool)
    gaps = {after - before for before, after in pairwise(frames)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert abs((frames[0] - pool[0]) - (pool[-1] - frames[-1])) <= 1


def test_drawn_frames_are_candidates_and_differ() -> None:
    keys = unit(4, 50, 4)
    frames, _ = chosen(Random(retrieved=6), keys[:, -1], keys, range(3, 20))
    assert frames.shape == (4, 6)
    assert ((frames >= 3) & (frames < 20)).all()
    assert all(len(set(row)) == 6 for row in frames.tolist())


def test_successors_are_what_came_next() -> None:
    keys = unit(2, 40, 8, seed=3)
    keys[:, 39] = keys[:, 11]
    frames, cosines = chosen(Successor(retrieved=3), keys[:, 39], keys, range(1, 30))
    before, same = nearest(keys[:, 39], keys, count=3, candidates=range(1, 27))
    assert torch.equal(frames, before + 3) and torch.equal(cosines, same)
    assert frames[:, 0].tolist() == [14, 14]
    assert chosen(Successor(retrieved=3), keys[:, 39], keys, range(1, 4))[0].shape == (2, 0)


def test_a_successor_must_be_a_candidate_itself() -> None:
    """With a gap in the candidates, frames whose successor is missing are no matches."""
    keys = unit(1, 12, 8, seed=3)
    frames = torch.tensor([1, 2, 3, 4, 5, 8, 9, 10, 11])
    candidates = Candidates(frames, keys[:, frames], keys[:, 0], 3, draw=lambda: torch.empty(0))
    positions, _ = Successor(retrieved=9).choose(candidates)
    assert sorted(frames[positions][0].tolist()) == [4, 5, 8, 11]


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, [2, 1, 0]), (0.95, [2, 0, 1]), (-1.0, [2, 1, 3])])
def test_a_gate_opens_at_its_own_threshold(threshold: float, expected: list[int]) -> None:
    """Cosines with the query are 0.1, 0.8, 1, 0.4: what passes, nearest first, and then the earliest."""
    cosines = torch.tensor([0.1, 0.8, 1.0, 0.4])
    keys = torch.stack((cosines, (1 - cosines.square()).sqrt()), dim=1)[None]
    frames, _ = chosen(Gate(retrieved=3, threshold=threshold), torch.tensor([[1.0, 0.0]]), keys, range(4))
    assert frames[0].tolist() == expected


@pytest.mark.parametrize(
    ("relevance", "expected"), [(1.0, [0, 1]), (0.75, [0, 1]), (0.7, [0, 2]), (0.5, [0, 2]), (0.0, [0, 2])]
)
def test_relevance_weighs_similarity_against_diversity(relevance: float, expected: list[int]) -> None:
    """Cosines with the query are 0.95, 0.94 and 0.75; frame 1 is almost frame 0, and frame 2 has a cosine of 0.51 with
    it: 0.94 r - 1.00 (1 - r) and 0.75 r - 0.51 (1 - r) are the same at r = 0.72."""
    cosines = torch.tensor([0.95, 0.94, 0.75])
    away = (1 - cosines.square()).sqrt() * torch.tensor([1.0, 1.0, -1.0])
    keys = torch.stack((cosines, away), dim=1)[None]
    frames, _ = chosen(Diverse(retrieved=2, relevance=relevance), torch.tensor([[1.0, 0.0]]), keys, range(3))
    assert frames[0].tolist() == expected


@pytest.mark.parametrize(
    ("spacing", "expected"), [(0.0, [0, 1, 2]), (0.17, [0, 1, 2]), (0.19, [0, 9, 4]), (2.0, [0, 9, 4])]
)
def test_spacing_weighs_similarity_against_distance_in_time(spacing: float, expected: list[int]) -> None:
    """Cosines fall from 1 by 0.02 a frame over ten frames: frame 9 has 0.82, and is a whole span from frame 0."""
    cosines = 1 - 0.02 * torch.arange(10)
    keys = torch.stack((cosines, (1 - cosines.square()).sqrt()), dim=1)[None]
    frames, similarities = chosen(Spaced(retrieved=3, spacing=spacing), torch.tensor([[1.0, 0.0]]), keys, range(10))
    assert frames[0].tolist() == expected
    assert similarities[0].tolist() == pytest.approx([1 - 0.02 * frame for frame in expected])


def test_spaced_frames_are_different_for_each_video() -> None:
    keys = unit(3, 20, 8, seed=7)
    frames, _ = chosen(Spaced(retrieved=5), keys[:, -1], keys, range(2, 19))
    for video in range(3):
        alone, _ = chosen(Spaced(retrieved=5), keys[video : video + 1, -1], keys[video : video + 1], range(2, 19))
        assert torch.equal(frames[video], alone[0])
    assert frames.shape == (3, 5) and all(len(set(row)) == 5 for row in frames.tolist())
    few, _ = chosen(Spaced(retrieved=5), keys[:, -1], keys, range(2, 4))
    assert few.shape == (3, 2)


def test_defaults_are_those_of_the_paper() -> None:
    assert Nearest().model_dump() == {
        "strategy": "nearest", "window": 12, "sink": 1, "recache": "keep", "commit": "full", "commit_frames": None,
        "retrieved": 6, "guard": 0, "times": "collapsed", "read_steps": None, "read_layers": None,
        "keys": "average", "key_layer": None, "alignment": 0, "encoder": None, "archive": "device",
    }  # fmt: skip
    assert SlidingWindow().model_dump() == {
        "strategy": "none", "window": 12, "sink": 1, "recache": "keep", "commit": "full", "commit_frames": None,
    }  # fmt: skip
    assert (Diverse().relevance, Gate().threshold) == (0.5, 0.9)
    assert EncoderConfig().model_dump() == {
        "in_channels": 16, "spatial_h": 60, "spatial_w": 104, "latent_dim": 1024, "hidden_dims": (64, 128, 256),
    }  # fmt: skip
