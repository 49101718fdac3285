"""From judged rows to means, paired differences, a table in CSV, and one sentence."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from llrag_cli.evaluation.results import LEVEL, MIN_PROMPTS, UNCORRECTED, is_significant
from llrag_cli.evaluation.returning.judge import Measures
from llrag_cli.evaluation.returning.plan import AGAIN, SCHEMA, windows
from llrag_cli.evaluation.returning.study import Row
from llrag_cli.evaluation.statistics import holm, sign_flip_test
from llrag_cli.evaluation.study import estimate
from llrag_cli.formatting import counted, listed


@dataclass(frozen=True)
class Measure:
    """A field of ``Measures``."""

    title: str
    better: int  # 1: higher, -1: lower


MEASURES: Mapping[str, Measure] = {
    "color": Measure("colour", 1),
    "identity": Measure("identity", 1),
    "size": Measure("size error", -1),
    "tint": Measure("wall tint", -1),
    "presence": Measure("presence", 1),
}
DIFFERENCES = (
    ("nearest", "native"),
    ("nearest", "random"),
    ("nearest", "first"),
    ("random", "native"),
    ("times", "native"),
)
Estimates = Mapping[str, Mapping[str, float] | None]  # by measure: mean, low, high; None if nothing could be judged


def summary(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured: each condition, over the whole continuation and in parts, and differences.

    Intervals are 95 %, from a bootstrap over scenes; differences are paired by scene and seed. Their p-values are of a
    sign-flip test over scenes, and corrected for the number of tests (Holm).
    """
    shots = [AGAIN, *settings["conditions"]]
    of = {shot: {(row.scene, row.seed): row for row in rows if row.shot == shot} for shot in shots}
    parts = {len(row.windows) for row in rows if row.shot != AGAIN}
    pairs = [
        *DIFFERENCES,
        *((name, other) for name in settings["variants"] for other in ("nearest", "random", "native")),
    ]
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "scenes": len({row.scene for row in rows}),
        "videos": len({(row.scene, row.seed) for row in rows}),
        "settings": dict(settings),
        "conditions": {
            shot: {
                "whole": _estimates({place: row.whole for place, row in found.items()}),
                "windows": [
                    _estimates({place: row.windows[part] for place, row in found.items()})
                    for part in range(0 if shot == AGAIN else max(parts, default=0))
                ],
                "retrieved_of_a": _mean([row.retrieved_of_a for row in found.values()]),
            }
            for shot, found in of.items()
        },
        "differences": [
            {"condition": one, "minus": other, **_differences(of[one], of[other])}
            for one, other in pairs
            if one in shots and other in shots
        ],
    }
    tested = [gap[name] for gap in content["differences"] for name in MEASURES if gap[name] is not None]
    for estimates, corrected in zip(tested, holm([estimates["p"] for estimates in tested]), strict=True):
        estimates["p_corrected"] = corrected
    return {"sentence": sentence(content), "variants": variant_lines(content, tests=len(tested)), **content}


def _estimates(found: Mapping[tuple[int, int], Measures]) -> dict[str, dict[str, float] | None]:
    return {name: _estimate({place: _value(each, name) for place, each in found.items()}) for name in MEASURES}


def _differences(
    one: Mapping[tuple[int, int], Row], other: Mapping[tuple[int, int], Row]
) -> dict[str, dict[str, float] | None]:
    shared = [place for place in one if place in other]
    return {
        name: _estimate(
            {place: _value(one[place].whole, name) - _value(other[place].whole, name) for place in shared}, test=True
        )
        for name in MEASURES
    }


def _value(measures: Measures, name: str) -> float:
    value: float | None = getattr(measures, name)
    return nan if value is None else value


def _estimate(values: Mapping[tuple[int, int], float], *, test: bool = False) -> dict[str, float] | None:
    """A bootstrap over scenes, which are the first numbers of the keys; nan has no part in it. ``test``: with ``p``."""
    places = sorted(place for place, value in values.items() if not isnan(value))
    if not places:
        return None
    known, scenes = [values[place] for place in places], [scene for scene, _ in places]
    return estimate(known, scenes=scenes) | ({"p": sign_flip_test(known, clusters=scenes)} if test else {})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- the sentence -----------------------------------------------------------------------------------


def sentence(content: Mapping[str, Any]) -> str:
    """The result for a person: what is gained over the plain window, and what the controls say about the cause."""
    gaps = {(each["condition"], each["minus"]): each for each in content["differences"]}
    scenes = counted(content["scenes"], "scene")
    if ("nearest", "native") not in gaps:
        return "No conclusion: that takes the conditions `nearest` and `native`."
    if content["scenes"] < MIN_PROMPTS:
        return f"No conclusion: {scenes}, too few for one."
    gap = gaps["nearest", "native"]
    gains, losses = _better(gap), _worse(gap)
    start = f"By 95 % intervals over {scenes}, retrieving the nearest frames"
    worse = f" and is worse in {_titles(losses)}" if losses else ""
    if not gains:
        return f"{start} shows no significant gain over the plain window{worse}."
    clauses = [
        f"{start} is better than the plain window in {_titles(gains)}{worse}",
        _choice(gaps.get(("nearest", "random")), gaps.get(("random", "native")), gains),
        _beginning(gaps.get(("nearest", "first")), gains),
        _clock(gaps.get(("times", "native")), gains),
    ]
    return f"{'; '.join(clauses)}."


def _choice(gap: Estimates | None, random: Estimates | None, gains: Sequence[str]) -> str:
    """What random old frames say about the choice of frames: their gap to the nearest, and to the plain window."""
    if gap is None or random is None:
        return "random old frames were not tried, so it is open whether the choice of frames matters"
    chosen = [name for name in gains if name in _better(gap)]
    beaten = [name for name in gains if name in _worse(gap)]
    equal = [name for name in gains if name not in (*chosen, *beaten)]
    as_good = [name for name in equal if name in _better(random)]
    unclear = [name for name in equal if name not in as_good]
    clauses = [
        clause.format(_titles(names))
        for clause, names in (
            ("random old frames do better in {}", beaten),
            ("random old frames do as well in {}", as_good),
            ("there is no significant difference from random old frames in {}", unclear),
            ("the nearest are better than random old frames in {}, where the choice of frames matters", chosen),
        )
        if names
    ]
    return listed(clauses) if chosen else f"{listed(clauses)}, so nothing shows that the choice of frames matters"


def _beginning(gap: Estimates | None, gains: Sequence[str]) -> str:
    """What the first frames of the video say."""
    if gap is None:
        return "the first frames were not tried"
    better, worse = ([name for name in gains if name in names] for names in (_better(gap), _worse(gap)))
    if not better and not worse:
        return "there is no significant difference from the first frames"
    clauses = [f"{word} in {_titles(names)}" for word, names in (("better", better), ("worse", worse)) if names]
    return f"compared with the first frames the nearest are {listed(clauses)}"


def _clock(gap: Estimates | None, gains: Sequence[str]) -> str:
    """What relative times without retrieved frames say about the cause."""
    if gap is None:
        return "relative times alone were not tried, so it is open whether they are the cause"
    alone = [name for name in gains if name in _better(gap)]
    if not alone:
        return "relative times alone gain nothing there"
    return f"relative times alone are better too in {_titles(alone)}, where retrieved frames need not be the cause"


def _better(gap: Estimates) -> list[str]:
    return [name for name in MEASURES if _direction(gap, name) > 0]


def _worse(gap: Estimates) -> list[str]:
    return [name for name in MEASURES if _direction(gap, name) < 0]


def _direction(gap: Estimates, name: str) -> int:
    """1: significantly better, -1: significantly worse, 0: neither."""
    difference = gap[name]
    if difference is None or not is_significant(difference):
        return 0
    return MEASURES[name].better * (1 if difference["mean"] > 0 else -1)


def _titles(names: Sequence[str]) -> str:
    return listed([MEASURES[name].title for name in names])


def variant_lines(content: Mapping[str, Any], *, tests: int) -> list[str]:
    """For each variant, where it differs from the nearest frames as they are; what the correction leaves is marked."""
    if content["scenes"] < MIN_PROMPTS:
        return []
    lines = []
    for gap in content["differences"]:
        if gap["condition"] not in content["settings"]["variants"] or gap["minus"] != "nearest":
            continue
        parts = []
        for word, names in (("better", _better(gap)), ("worse", _worse(gap))):
            marked = [
                MEASURES[name].title + ("" if gap[name]["p_corrected"] < LEVEL else UNCORRECTED) for name in names
            ]
            parts += [f"{word} in {listed(marked)}"] if marked else []
        lines.append(f"{gap['condition']} against nearest: {', '.join(parts) or 'no significant difference'}")
    if any(UNCORRECTED in line for line in lines):
        lines.append(f"{UNCORRECTED} not significant after Holm's correction for {tests} tests")
    return lines


# --- every row --------------------------------------------------------------------------------------


def rows_csv(rows: Sequence[Row], *, count: int, seconds: float) -> str:
    """Every row, and every part of it, of continuations of ``count`` latent frames that last ``seconds``."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["scene", "seed", "condition", "from_second", "to_second", *MEASURES, "retrieved_of_a"])
    spans = windows(count, seconds=seconds)
    times = [(seconds * span.start / count, seconds * span.stop / count) for span in spans]
    for row in rows:
        share = "" if row.retrieved_of_a is None else f"{row.retrieved_of_a:.4f}"
        whole = ("", "") if row.shot == AGAIN else ("0", f"{seconds:g}")
        writer.writerow([*row.key, *whole, *_cells(row.whole), share])
        for (start, stop), part in zip(times, row.windows if len(row.windows) > 1 else (), strict=False):
            writer.writerow([*row.key, f"{start:g}", f"{stop:g}", *_cells(part), ""])
    return file.getvalue()


def _cells(measures: Measures) -> list[str]:
    values = [getattr(measures, name) for name in MEASURES]
    return ["" if value is None else f"{value:.4f}" for value in values]
