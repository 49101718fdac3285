"""From figures of videos to an answer: means, paired differences, ranks."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llrag_cli.errors import LlragError
from llrag_cli.evaluation.metrics.score import mean_of
from llrag_cli.evaluation.run import Scored
from llrag_cli.evaluation.statistics import average_ranks, interval, win_rate


@dataclass(frozen=True)
class Figure:
    """One figure of a video: what it is called, and which way is better."""

    name: str
    heading: str
    better: Literal["more", "less", "neither"]


FIGURES = (
    Figure("consistency_within", "within clips", "more"),
    Figure("consistency_across", "across clips", "more"),
    Figure("consistency_mapped", "across, mapped", "more"),
    Figure("subject_consistency", "subject", "more"),
    Figure("background_within", "background within", "more"),
    Figure("background_across", "background across", "more"),
    Figure("background_mapped", "background mapped", "more"),
    Figure("background_consistency", "background", "more"),
    Figure("motion_smoothness", "smoothness", "more"),
    Figure("temporal_flickering", "flicker", "more"),
    Figure("aesthetic_quality", "aesthetic", "more"),
    Figure("imaging_quality", "imaging", "more"),
    Figure("dynamic_degree", "dynamic", "neither"),
    Figure("first_to_last", "first to last", "more"),
    Figure("similarity_slope", "slope a minute", "more"),
    Figure("chroma_noise_growth", "chroma noise", "less"),
    Figure("colorfulness_growth", "colour growth", "neither"),
    Figure("histogram_overlap", "histogram", "more"),
    Figure("sprite_color", "colours kept", "more"),
    Figure("sprite_identity", "objects kept", "more"),
    Figure("sprite_returns", "returns right", "more"),
    Figure("sprite_tint", "wall drift", "less"),
)
FEWEST_PROMPTS = 5  # below this a bootstrap over prompts is sure of everything
Pair = tuple[int, int]  # prompt number and seed
Column = list["float | None"]  # a figure of one method's videos, in order of pairs


def compare(scored: Sequence[Scored], *, baseline: str, ranked: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each backbone and horizon: per method means, rank, and paired differences to the baseline.

    Only videos that every method has are compared, methods ranked by the figures ``ranked``. Intervals are 95 %,
    bootstrap over prompts. Scores of more than one back end are an error.
    """
    back_ends = sorted({each.back_end for each in scored})
    if len(back_ends) > 1:
        raise LlragError(
            f"scores of different back ends are not compared: {' and '.join(f'`{name}`' for name in back_ends)}",
            hint="score every video with the same `--backend`",
        )
    results = []
    for backbone, seconds in dict.fromkeys((each.cell.backbone, each.seconds) for each in scored):
        here = [each for each in scored if (each.cell.backbone, each.seconds) == (backbone, seconds)]
        tables: dict[str, dict[Pair, Mapping[str, Any]]] = {}
        for each in here:
            tables.setdefault(each.cell.method, {})[each.cell.number, each.cell.seed] = each.figures
        pairs = sorted(set.intersection(*(set(table) for table in tables.values())))
        if not pairs:
            continue
        columns = {
            method: {figure.name: [table[pair].get(figure.name) for pair in pairs] for figure in FIGURES}
            for method, table in tables.items()
        }
        means = {method: {name: mean_of(column) for name, column in each.items()} for method, each in columns.items()}
        ranks, why = _ranks({method: {name: each[name] for name in ranked} for method, each in means.items()})
        entries: dict[str, dict[str, Any]] = {}
        for method in tables:
            entries[method] = {"means": means[method], "average_rank": ranks.get(method)}
            if method != baseline and baseline in tables:
                entries[method]["differences"] = differences(columns[method], columns[baseline], pairs)
        results.append(
            {
                "backbone": backbone,
                "seconds": seconds,
                "videos": len(pairs),
                "prompts": len({number for number, _ in pairs}),
                "ranked_by": list(ranked) if ranks else [],
                "not_ranked": why,
                "methods": entries,
            }
        )
    return results


def differences(
    mine: Mapping[str, Column], other: Mapping[str, Column], pairs: Sequence[Pair]
) -> dict[str, dict[str, float]]:
    """Paired differences of each figure: mean, 95 % interval, and the share of pairs that are won."""
    found = {}
    for figure in FIGURES:
        gaps = [
            math.nan if one is None or two is None else one - two
            for one, two in zip(mine[figure.name], other[figure.name], strict=True)
        ]
        mean, low, high = interval(gaps, clusters=[number for number, _ in pairs])
        if not math.isnan(mean):
            wins = win_rate([-gap for gap in gaps] if figure.better == "less" else gaps)
            found[figure.name] = {"mean": mean, "low": low, "high": high, "wins": wins}
    return found


def _ranks(means: Mapping[str, Mapping[str, float | None]]) -> tuple[dict[str, float], str | None]:
    """Average ranks, or none and why."""
    try:
        return average_ranks(means), None
    except ValueError as error:
        return {}, str(error)


def verdict(result: dict[str, Any], *, baseline: str) -> str:
    """One entry of ``compare`` in a sentence or two."""
    where = f"{result['backbone']}, {result['seconds']:g} s, {result['videos']} videos of each method"
    if result["prompts"] < FEWEST_PROMPTS:
        return f"{where}: fewer than {FEWEST_PROMPTS} prompts, too few to be sure of anything"
    said = []
    for method, entry in result["methods"].items():
        if "differences" not in entry:
            continue
        for_it: list[str] = []
        against: list[str] = []
        for figure in FIGURES:
            found = entry["differences"].get(figure.name)
            if found is None or figure.better == "neither" or found["low"] <= 0 <= found["high"]:
                continue
            text = f"{figure.heading} {found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            (for_it if (found["mean"] > 0) == (figure.better == "more") else against).append(text)
        if not for_it and not against:
            said.append(f"{method} cannot be told from {baseline}")
        else:
            better = f"better in {', '.join(for_it)}" if for_it else "better in nothing for sure"
            said.append(f"{method} is {better}" + (f"; worse in {', '.join(against)}" if against else ""))
    return f"{where}: {'; '.join(said)}" if said else f"{where}: nothing to compare with"


def as_csv(scored: Sequence[Scored]) -> str:
    """One line a video and horizon."""
    names = [figure.name for figure in FIGURES]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["backbone", "method", "seconds", "prompt_number", "seed", "prompt", *names])
    for each in scored:
        cell = each.cell
        row = [cell.backbone, cell.method, f"{each.seconds:g}", cell.number, cell.seed, cell.prompt]
        writer.writerow([*row, *("" if each.figures.get(name) is None else each.figures[name] for name in names)])
    return file.getvalue()
