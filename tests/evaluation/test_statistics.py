from __future__ import annotations

import math

import numpy as np
import pytest

from llrag_cli.evaluation.statistics import average_ranks, interval, ranks, win_rate


def test_ties_share_their_ranks() -> None:
    assert ranks([0.9, 0.5, 0.9, 0.1]) == [1.5, 3, 1.5, 4]
    assert ranks([1.0, 1.0, 1.0]) == [2, 2, 2]


def test_average_rank_over_dimensions() -> None:
    scores = {"a": {"x": 0.9, "y": 0.2}, "b": {"x": 0.8, "y": 0.3}, "c": {"x": 0.1, "y": 0.1}}
    assert average_ranks(scores) == {"a": 1.5, "b": 1.5, "c": 3}
    with pytest.raises(ValueError, match="`b` has no y"):
        average_ranks({"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": None}})


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(100):
        _, low, high = interval(rng.normal(0.3, 1, size=40), seed=trial)
        held += low <= 0.3 <= high
    assert 85 <= held <= 100


def test_clusters_widen_intervals_and_nan_is_left_out() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=10), 8)
    _, low, high = interval(values)
    _, wide_low, wide_high = interval(values, clusters=np.repeat(np.arange(10), 8).tolist())
    assert wide_high - wide_low > 1.5 * (high - low)
    assert interval([1.0, math.nan, 3.0])[0] == 2
    assert math.isnan(interval([math.nan])[0])


def test_wins() -> None:
    assert win_rate([1, 2, -1, 0]) == pytest.approx(2.5 / 4)
