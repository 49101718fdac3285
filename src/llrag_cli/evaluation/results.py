"""From metrics of videos to a comparison: means, paired differences, ranks."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llrag_cli.errors import LlragError
from llrag_cli.evaluation.metrics.registry import METRICS, drift_metrics, mean_of
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.run import Scored
from llrag_cli.evaluation.statistics import average_ranks, interval, win_rate

MIN_PROMPTS = 5  # with fewer, a bootstrap over prompts gives intervals that are far too narrow
Pair = tuple[int, int]  # prompt number and seed
Column = list["float | None"]  # a metric of one memory's videos, in order of pairs


def compare(scored: Sequence[Scored], *, baseline: str, ranked: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each backbone and horizon: per memory means, rank, and paired differences to the baseline.

    Only videos that every memory has are compared; memories are ranked by the metrics ``ranked``, and by those of drift
    apart. Intervals are 95 %, bootstrap over prompts. Scores of more than one backend are an error.
    """
    backends = sorted({video.backend for video in scored})
    if len(backends) > 1:
        raise LlragError(
            f"scores of different backends cannot be compared: {' and '.join(f'`{name}`' for name in backends)}",
            hint="score every video with the same backend",
        )
    results = []
    for backbone, seconds in dict.fromkeys((video.case.backbone, video.seconds) for video in scored):
        tables: dict[str, dict[Pair, Scores]] = {}
        for video in scored:
            if (video.case.backbone, video.seconds) == (backbone, seconds):
                tables.setdefault(video.case.memory, {})[video.case.number, video.case.seed] = video.scores
        pairs = sorted(set.intersection(*(set(table) for table in tables.values())))
        if pairs:
            comparison = _compare_memories(tables, pairs, baseline=baseline, ranked=ranked)
            results.append({"backbone": backbone, "seconds": seconds, **comparison})
    return results


def _compare_memories(
    tables: Mapping[str, Mapping[Pair, Scores]], pairs: Sequence[Pair], *, baseline: str, ranked: Sequence[str]
) -> dict[str, Any]:
    columns = {
        memory: {name: [table[pair].metrics.get(name) for pair in pairs] for name in METRICS}
        for memory, table in tables.items()
    }
    means = {memory: {name: mean_of(column) for name, column in metrics.items()} for memory, metrics in columns.items()}
    ranks, not_ranked = _ranks(means, ranked)
    drift, _ = _ranks(means, drift_metrics())  # none where a video has a single clip
    entries: dict[str, dict[str, Any]] = {}
    for memory in tables:
        entries[memory] = {"means": means[memory], "average_rank": ranks.get(memory), "drift_rank": drift.get(memory)}
        if memory != baseline and baseline in tables:
            entries[memory]["differences"] = differences(columns[memory], columns[baseline], pairs)
    return {
        "videos": len(pairs),
        "prompts": len({number for number, _ in pairs}),
        "ranked_by": list(ranked) if ranks else [],
        "drift_ranked_by": drift_metrics() if drift else [],
        "not_ranked": not_ranked,
        "memories": entries,
    }


def differences(
    columns: Mapping[str, Column], baseline: Mapping[str, Column], pairs: Sequence[Pair]
) -> dict[str, dict[str, float]]:
    """Paired differences of each metric to the baseline: mean, 95 % interval, and the share of pairs that are won."""
    entries = {}
    for name, metric in METRICS.items():
        gaps = [
            math.nan if value is None or base is None else value - base
            for value, base in zip(columns[name], baseline[name], strict=True)
        ]
        mean, low, high = interval(gaps, clusters=[number for number, _ in pairs])
        if not math.isnan(mean):
            wins = win_rate([-gap for gap in gaps] if metric.better == "lower" else gaps)
            entries[name] = {"mean": mean, "low": low, "high": high, "wins": wins}
    return entries


def rank(means: Mapping[str, Mapping[str, float | None]], ranked: Sequence[str]) -> dict[str, float]:
    """The average rank of each row of means over the metrics ``ranked``, 1 for the best.

    A metric that a row lacks cannot be ranked: a ``ValueError``.
    """
    signs = {name: -1.0 if METRICS[name].better == "lower" else 1.0 for name in ranked}
    table = {
        row: {name: None if (value := values[name]) is None else sign * value for name, sign in signs.items()}
        for row, values in means.items()
    }
    return average_ranks(table)


def _ranks(
    means: Mapping[str, Mapping[str, float | None]], ranked: Sequence[str]
) -> tuple[dict[str, float], str | None]:
    """Average ranks, or none and the reason."""
    try:
        return rank(means, ranked), None
    except ValueError as error:
        return {}, str(error)


def is_significant(difference: Mapping[str, float]) -> bool:
    """Whether a 95 % interval excludes 0."""
    return not difference["low"] <= 0 <= difference["high"]


def verdict(result: Mapping[str, Any], *, baseline: str) -> str:
    """One entry of ``compare`` in a sentence or two."""
    subject = f"{result['backbone']}, {result['seconds']:g} s, {result['videos']} videos of each memory"
    if result["prompts"] < MIN_PROMPTS:
        return f"{subject}: fewer than {MIN_PROMPTS} prompts, too few for a conclusion"
    clauses = []
    for memory, entry in result["memories"].items():
        if "differences" not in entry:
            continue
        better: list[str] = []
        worse: list[str] = []
        for name, metric in METRICS.items():
            gap = entry["differences"].get(name)
            if gap is None or metric.better == "neither" or not is_significant(gap):
                continue
            text = f"{metric.heading} {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
            (better if (gap["mean"] > 0) == (metric.better == "higher") else worse).append(text)
        if better or worse:
            parts = [f"better in {', '.join(better)}"] if better else []
            parts += [f"worse in {', '.join(worse)}"] if worse else []
            clauses.append(f"`{memory}` is {' and '.join(parts)}")
        else:
            clauses.append(f"`{memory}` has no significant difference from `{baseline}`")
    return f"{subject}: {'; '.join(clauses) if clauses else 'nothing to compare with'}"


def as_csv(scored: Sequence[Scored]) -> str:
    """One line a video and horizon."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["backbone", "memory", "seconds", "prompt_number", "seed", "prompt", *METRICS])
    for video in scored:
        case, metrics = video.case, video.scores.metrics
        row = [case.backbone, case.memory, f"{video.seconds:g}", case.number, case.seed, case.prompt]
        writer.writerow([*row, *("" if metrics.get(name) is None else metrics[name] for name in METRICS)])
    return file.getvalue()
