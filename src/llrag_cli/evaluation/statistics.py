"""Ranks, and bootstrap intervals of paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


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
    groups = {name: [index for index, cluster in enumerate(names) if cluster == name] for name in dict.fromkeys(names)}
    sums = np.array([np.nansum(array[group]) for group in groups.values()])
    counts = np.array([np.count_nonzero(~np.isnan(array[group])) for group in groups.values()])
    if not counts.sum():
        return float("nan"), float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(0, len(groups), size=(4000, len(groups)))
    means = sums[drawn].sum(axis=1) / np.maximum(1, counts[drawn].sum(axis=1))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def win_rate(differences: Sequence[float]) -> float:
    """Share of pairs that are won; a tie counts half."""
    array = np.asarray(differences, dtype=float)
    array = array[~np.isnan(array)]
    return float(((array > 0) + 0.5 * (array == 0)).mean()) if len(array) else float("nan")
