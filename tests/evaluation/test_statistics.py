from __future__ import annotations

import math

import numpy as np
import pytest

from llrag_cli.evaluation.statistics import (
    DRAWS,
    EXACT_CLUSTERS,
    average_ranks,
    holm,
    interval,
    ranks,
    sign_flip_test,
    win_rate,
)


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


def test_what_is_unknown_does_not_pull_an_interval_to_zero() -> None:
    assert interval([0.5]) == interval([math.nan, 0.5, math.nan]) == (0.5, 0.5, 0.5)
    _, low, high = interval([3.0, math.nan, 5.0], clusters=["a", "b", "c"])
    assert (low, high) == (3, 5)


def test_wins() -> None:
    assert win_rate([1, 2, -1, 0]) == pytest.approx(2.5 / 4)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_an_interval_ends_at_the_quantiles_of_the_resampled_means(level: float) -> None:
    """Resampled here by hand: 4000 draws of whole clusters, and the quantiles between the sorted means."""
    values = [math.sqrt(number) for number in range(2, 13)]
    clusters = [number % 9 for number in range(11)]  # two of them have two values; one value is unknown
    values[4] = math.nan
    groups = [
        [values[0], values[9]],
        [values[1], values[10]],
        *([values[n]] for n in (2, 3)),
        [],
        *([values[n]] for n in (5, 6, 7, 8)),
    ]
    generator = np.random.default_rng(5)
    means = []
    for drawn in generator.integers(0, 9, size=(4000, 9)):
        together = [value for number in drawn for value in groups[number]]
        means.append(sum(together) / len(together) if together else 0.0)
    means.sort()

    def quantile(share: float) -> float:
        position = share * (len(means) - 1)
        below = int(position)
        return means[below] + (position - below) * (means[below + 1] - means[below])

    found = interval(values, clusters=clusters, level=level, seed=5)
    assert found == pytest.approx((np.nanmean(values), quantile((1 - level) / 2), quantile((1 + level) / 2)), abs=1e-12)


def test_an_interval_is_of_95_percent_and_of_one_draw_unless_asked_otherwise() -> None:
    values = [0.1, 0.9, 0.4, -0.3, 0.2]
    assert interval(values) == interval(values, level=0.95, seed=0)
    assert interval(values) != interval(values, level=0.9, seed=0)
    assert interval(values) != interval(values, level=0.95, seed=1)


def test_the_sign_flip_test_counts_all_patterns_of_few_clusters() -> None:
    assert sign_flip_test([1.0, 2.0, 3.0]) == 2 / 8  # +++ and --- alone are as far from 0
    assert sign_flip_test([1.0, -1.0]) == 1.0
    assert sign_flip_test([0.0, 0.0]) == 1.0
    # two videos of one prompt have one sign: three clusters, not four
    assert sign_flip_test([1.0, 1.0, 2.0, 3.0], clusters=["a", "a", "b", "c"]) == 2 / 8
    assert sign_flip_test([1.0, math.nan, 2.0, 3.0]) == 4 / 16  # the sign of a missing one changes nothing
    assert math.isnan(sign_flip_test([math.nan]))


def test_the_sign_flip_test_draws_patterns_of_many_clusters() -> None:
    differences = [0.1 + 0.01 * number for number in range(EXACT_CLUSTERS + 4)]
    assert sign_flip_test(differences) == 1 / (1 + DRAWS)  # never 0: the pattern seen is one of them
    level = [(-1) ** number * 0.1 for number in range(EXACT_CLUSTERS + 4)]
    assert sign_flip_test(level) == 1.0
    weak = [(-1) ** (number // 3) * value for number, value in enumerate(differences)]
    assert sign_flip_test(weak) == sign_flip_test(weak) > 0.1  # the same draws each time


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 0.04 * 1 may not fall below 0.03 * 2
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_clusters_are_found_in_one_pass() -> None:
    """Names are compared no more than a few times each: a search for each of them would take 10^10 comparisons."""

    class Name(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Name.compared += 1
            return int.__eq__(self, other)

        __hash__ = int.__hash__

    names = [Name(number % 500) for number in range(2000)]
    interval([1.0] * 2000, clusters=names)
    sign_flip_test([1.0] * 2000, clusters=names)
    assert Name.compared < 10 * 2000
