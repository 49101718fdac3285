"""Ranks, bootstrap intervals and tests of paired differences, and the correction for many tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

EXACT_CLUSTERS = 14  # up to as many, every combination of signs is tried: 2^14
DRAWS = 20_000  # of signs, for more clusters


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, 1 for the largest; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=float)
    above = (array[None] > array[:, None]).sum(axis=1)
    level = (array[None] == array[:, None]).sum(axis=1)
    return [float(rank) for rank in above + (level + 1) / 2]


def average_ranks(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """The mean over dimensions of each row's rank; scores are by row, then dimension, and higher is better.

    A dimension that a row lacks cannot be ranked: a ``ValueError``.
    """
    rows = list(scores)
    dimensions = list(scores[rows[0]])
    table = []
    for dimension in dimensions:
        values = [scores[row].get(dimension) for row in rows]
        if any(value is None for value in values):
            lacking = rows[values.index(None)]
            raise ValueError(f"`{lacking}` has no {dimension}")
        table.append(ranks([float(value) for value in values if value is not None]))
    means = np.asarray(table).mean(axis=0)
    return {row: float(mean) for row, mean in zip(rows, means, strict=True)}


def interval(
    differences: Sequence[float], *, clusters: Sequence[object] | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of paired differences and its bootstrap interval (percentiles); nan is ignored.

    With ``clusters``, one name for each difference, whole clusters are resampled: videos of one prompt are not
    independent.
    """
    array = np.asarray(differences, dtype=float)
    names = list(range(len(array))) if clusters is None else list(clusters)
    groups = _groups(names)
    sums = np.array([np.nansum(array[group]) for group in groups.values()])
    counts: NDArray[np.float64] = np.array(
        [np.count_nonzero(~np.isnan(array[group])) for group in groups.values()], dtype=float
    )
    if not counts.sum():
        return float("nan"), float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(groups), size=(4000, len(groups)))
    known = counts[drawn].sum(axis=1)
    means = sums[drawn].sum(axis=1)[known > 0] / known[known > 0]  # a draw of unknown values alone has no mean
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def _groups(names: Sequence[object]) -> dict[object, list[int]]:
    """The indices of each name."""
    groups: dict[object, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return groups


def win_rate(differences: Sequence[float]) -> float:
    """Share of pairs that are won; a tie counts half."""
    array = np.asarray(differences, dtype=float)
    array = array[~np.isnan(array)]
    return float(((array > 0) + 0.5 * (array == 0)).mean()) if len(array) else float("nan")


def sign_flip_test(differences: Sequence[float], *, clusters: Sequence[object] | None = None, seed: int = 0) -> float:
    """Two-sided p-value of paired differences against "symmetric around 0"; nan is ignored.

    A randomisation test (Fisher 1935): the share of sign patterns under which the sum is at least as far from 0. With
    ``clusters``, one name for each difference, a cluster has one sign. Exact up to ``EXACT_CLUSTERS`` clusters, beyond
    with random signs. nan if there is no difference at all.
    """
    array = np.asarray(differences, dtype=float)
    names = list(range(len(array))) if clusters is None else list(clusters)
    if np.isnan(array).all():
        return float("nan")
    groups = _groups(names)
    sums = np.array([np.nansum(array[group]) for group in groups.values()])
    observed = abs(sums.sum()) * (1 - 1e-9)  # equal but for rounding counts as equal
    if len(sums) <= EXACT_CLUSTERS:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, size=(DRAWS, len(sums)))
    return float((1 + (np.abs(signs @ sums) >= observed).sum()) / (1 + DRAWS))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): below 0.05, chance is ruled out for the family as a whole."""
    array = np.asarray(p_values, dtype=float)
    order = np.argsort(array, kind="stable")
    corrected = np.empty_like(array)
    factors = np.arange(len(array), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(array[order] * factors))
    return [float(value) for value in corrected]
