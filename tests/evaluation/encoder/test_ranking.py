from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llrag_cli.evaluation.encoder.ranking import (
    effective_rank,
    recall_at,
    reciprocal_rank,
    share_near,
    similarity_by_lag,
)


def test_collapsed_keys_are_alike_at_every_lag() -> None:
    curve = similarity_by_lag(torch.ones(20, 4) * torch.rand(20, 1), (1, 5, 19, 20, 40))
    torch.testing.assert_close(curve[:3], torch.ones(3))
    assert curve[3:].isnan().all()  # the video is too short


def test_a_loop_is_alike_after_a_lap() -> None:
    angle = 2 * math.pi * torch.arange(36) / 12
    keys = torch.stack((angle.cos(), angle.sin()), dim=1)
    torch.testing.assert_close(similarity_by_lag(keys, (3, 6, 12)), torch.tensor([0.0, -1.0, 1.0]), atol=1e-5, rtol=0)


@given(st.integers(2, 8))
def test_effective_rank_counts_directions(directions: int) -> None:
    axes = torch.eye(10)[:directions]
    keys = torch.cat((axes, -axes))  # about zero, equally in each
    assert effective_rank(keys) == pytest.approx(directions, abs=1e-3)


def test_recall_and_rank_of_known_rankings() -> None:
    relevant = torch.tensor(
        [[True, True, False, False], [False, False, False, True], [False] * 4, [True, False, False, False]]
    )
    recall, rank = recall_at(relevant, 2), reciprocal_rank(relevant)
    assert recall[[0, 1, 3]].tolist() == [1.0, 0.0, 1.0]  # the last has one answer only, and found it
    assert rank[[0, 1, 3]].tolist() == [1.0, 0.25, 1.0]
    assert recall[2].isnan() and rank[2].isnan()


def test_share_near_the_guard() -> None:
    assert share_near([99, 95, 92, 91, 10], 99, within=8) == pytest.approx(3 / 5)
