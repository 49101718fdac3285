"""From judged shots to shares, paired differences, a table in CSV, and one sentence."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llrag_cli.evaluation.leave_return.plan import CONDITIONS, SCHEMA
from llrag_cli.evaluation.leave_return.study import Row
from llrag_cli.evaluation.results import MIN_PROMPTS, is_significant
from llrag_cli.evaluation.study import estimate
from llrag_cli.formatting import counted, listed

MEASURES: Mapping[str, str] = {"wall": "wall colour", "color": "object colours", "shape": "shapes"}
BASELINES: Mapping[str, str] = {
    "none": "no memory",
    "random": "random frames of the place",
    "wrong": "memory of the wrong place",
}
COMPARED = ("memory", "all", "random")  # with the baselines
SHOTS = ("A", "B", *CONDITIONS)
Shares = Mapping[str, Mapping[str, float]]  # by measure: mean, low, high


def summary(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured: of each shot what it shows of A and of B, and the differences between conditions.

    Intervals are 95 %, from a bootstrap over scenes; differences are paired by scene and seed.
    """
    shots = {
        name: {
            "of_a": _shares(rows, name, lambda row, measure: getattr(row.of_a, measure)),
            "of_b": _shares(rows, name, lambda row, measure: getattr(row.of_b, measure)),
            "retrieved_of_a": _mean([row.retrieved_of_a for row in rows if row.shot == name]),
        }
        for name in SHOTS
    }
    values = {row.key: row.of_a for row in rows}

    def gap(baseline: str) -> Callable[[Row, str], float]:
        return lambda row, measure: getattr(row.of_a, measure) - getattr(values[row.scene, row.seed, baseline], measure)

    content = {
        "schema": SCHEMA,
        "scenes": len({row.scene for row in rows}),
        "videos": len({(row.scene, row.seed) for row in rows}),
        "settings": dict(settings),
        "shots": shots,
        "differences": {
            name: {other: _shares(rows, name, gap(other)) for other in BASELINES if other != name} for name in COMPARED
        },
    }
    return {"sentence": sentence(content), **content}


def _shares(rows: Sequence[Row], shot: str, value: Callable[[Row, str], float]) -> dict[str, dict[str, float]]:
    mine = sorted((row for row in rows if row.shot == shot), key=lambda row: row.key)
    scenes = [row.scene for row in mine]
    return {measure: estimate([value(row, measure) for row in mine], scenes=scenes) for measure in MEASURES}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sentence(content: Mapping[str, Any]) -> str:
    """The result for a person."""
    shots, gaps = content["shots"], content["differences"]["memory"]
    with_memory, without = (_percentages(shots[name]["of_a"]) for name in ("memory", "none"))
    parts = [f"its {name} in {value}" for value, name in zip(with_memory, MEASURES.values(), strict=True)]
    told = (
        f"Back at place A under a prompt that names nothing of it, memory of A brings back {listed(parts)} of frames, "
        f"against {listed(without)} without memory"
    )
    if content["scenes"] < MIN_PROMPTS:
        return f"{told} ({counted(content['scenes'], 'scene')}, too few for a conclusion)."
    verdicts = [f"{_compared(gaps[name])} {title}" for name, title in BASELINES.items()]
    return f"{told}; by 95 % intervals over {content['scenes']} scenes it is {listed(verdicts)}."


def _percentages(shares: Shares) -> list[str]:
    return [f"{100 * shares[measure]['mean']:.0f} %" for measure in MEASURES]


def _compared(gaps: Shares) -> str:
    """``better in shapes than``, ``not distinguishable from``."""
    certain = {name: gap["mean"] for name, gap in gaps.items() if is_significant(gap)}
    better = [MEASURES[name] for name, mean in certain.items() if mean > 0]
    worse = [MEASURES[name] for name, mean in certain.items() if mean < 0]
    if not certain:
        return "not distinguishable from"
    if len(better) == len(MEASURES):
        return "better in all three than"
    clauses = [f"{word} in {listed(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    return f"{listed(clauses)} than"


def rows_csv(rows: Sequence[Row]) -> str:
    """Every row."""
    file = io.StringIO()
    columns = [f"{measure}_of_{place}" for place in ("a", "b") for measure in MEASURES]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["scene", "seed", "shot", *columns, "retrieved_of_a"])
    for row in sorted(rows, key=lambda each: (each.scene, each.seed, SHOTS.index(each.shot))):
        shares = [getattr(place, measure) for place in (row.of_a, row.of_b) for measure in MEASURES]
        known = "" if row.retrieved_of_a is None else f"{row.retrieved_of_a:.4f}"
        writer.writerow([*row.key, *(f"{share:.4f}" for share in shares), known])
    return file.getvalue()
