"""From metrics of videos to a comparison: means, paired differences, ranks."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any

from llrag_cli.errors import LlragError
from llrag_cli.evaluation.grid import Case
from llrag_cli.evaluation.metrics.registry import GROUPS, METRICS, drift_metrics, mean_of
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.run import Scored
from llrag_cli.evaluation.statistics import average_ranks, holm, interval, sign_flip_test, win_rate
from llrag_cli.files.guarded import UnreadableError, require_text, shortened
from llrag_cli.formatting import listed
from llrag_cli.runs.record import LONGEST

MIN_PROMPTS = 5  # with fewer, a bootstrap over prompts gives intervals that are far too narrow
UNCORRECTED = "†"  # marks a difference that is significant on its own alone
LEVEL = 0.05  # of significance after the correction
Pair = tuple[int, int]  # prompt number and seed
Column = list["float | None"]  # a metric of one memory's videos, in order of pairs


def compare(scored: Sequence[Scored], *, baseline: str, ranked: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each backbone and horizon: per memory means, rank, and paired differences to the baseline.

    Only videos that every memory has are compared; memories are ranked by the metrics ``ranked``, and by those of drift
    apart. Intervals are 95 %, bootstrap over prompts. p-values are of a sign-flip test over prompts, and corrected for
    the number of tests in the entry (Holm). Scores of more than one backend are an error.
    """
    backends = sorted({video.backend for video in scored})
    if len(backends) > 1:
        raise LlragError(
            f"scores of different backends cannot be compared: {' and '.join(f'`{name}`' for name in backends)}",
            hint="score every video with the same backend",
        )
    results = []
    groups: dict[tuple[str, float], dict[str, dict[Pair, Scores]]] = {}
    for video in scored:
        tables = groups.setdefault((video.case.backbone, video.seconds), {})
        tables.setdefault(video.case.memory, {})[video.case.number, video.case.seed] = video.scores
    for (backbone, seconds), tables in groups.items():
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
        "tests": _correct(entries.values()),
        "memories": entries,
    }


def _correct(entries: Iterable[Mapping[str, Any]]) -> int:
    """Add Holm's ``p_corrected`` to all differences of metrics that can be better or worse; returns their number."""
    tested = [
        gap
        for entry in entries
        for name, gap in entry.get("differences", {}).items()
        if METRICS[name].better != "neither"
    ]
    for gap, corrected in zip(tested, holm([gap["p"] for gap in tested]), strict=True):
        gap["p_corrected"] = corrected
    return len(tested)


def differences(
    columns: Mapping[str, Column], baseline: Mapping[str, Column], pairs: Sequence[Pair]
) -> dict[str, dict[str, float]]:
    """Paired differences of each metric to the baseline.

    The mean, its 95 % interval (``low``, ``high``), the share of pairs that are won (``wins``), and ``p``.
    """
    entries: dict[str, dict[str, float]] = {}
    clusters = [number for number, _ in pairs]
    for name, metric in METRICS.items():
        gaps = [
            math.nan if value is None or base is None else value - base
            for value, base in zip(columns[name], baseline[name], strict=True)
        ]
        mean, low, high = interval(gaps, clusters=clusters)
        if not math.isnan(mean):
            wins = win_rate([-gap for gap in gaps] if metric.better == "lower" else gaps)
            p = sign_flip_test(gaps, clusters=clusters)
            entries[name] = {"mean": mean, "low": low, "high": high, "wins": wins, "p": p}
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


def stands_correction(difference: Mapping[str, float]) -> bool:
    """Whether a difference is significant after the correction for the number of tests."""
    return difference.get("p_corrected", 1.0) < LEVEL


@dataclass(frozen=True)
class Verdict:
    """One entry of ``compare`` in words."""

    subject: str
    lines: list[str]  # one for each memory, and notes

    def __str__(self) -> str:
        return "\n".join([self.subject, *(f"  {line}" for line in self.lines)])


def verdict(result: Mapping[str, Any], *, baseline: str) -> Verdict:
    """For each memory, where it is better or worse than the baseline in each group of metrics.

    Named are the metrics whose 95 % interval excludes 0; those that do not stand the correction are marked.
    """
    subject = f"{result['backbone']}, {result['seconds']:g} s, {result['videos']} videos of each memory"
    if result["prompts"] < MIN_PROMPTS:
        return Verdict(subject, [f"fewer than {MIN_PROMPTS} prompts, too few for a conclusion"])
    lines = []
    for memory, entry in result["memories"].items():
        if "differences" in entry:
            clauses = [_clause(group, entry["differences"]) for group in GROUPS]
            said = "; ".join(filter(None, clauses))
            lines.append(f"{memory} against {baseline}. {said[:1].upper()}{said[1:]}")
    if any(UNCORRECTED in line for line in lines):
        lines.append(f"{UNCORRECTED} by its interval alone, not after Holm's correction for {result['tests']} tests")
    least = prompts_needed(result["tests"])
    if lines and result["prompts"] < least:
        lines.append(
            f"no difference can stand the correction with {result['prompts']} prompts; that takes at least {least}"
        )
    return Verdict(subject, lines or ["nothing to compare with"])


def prompts_needed(tests: int) -> int:
    """The fewest prompts of which a difference can be significant after the correction for so many tests.

    The least p-value of a sign-flip test over n prompts is 2 in 2^n.
    """
    return next(count for count in count_from(1) if max(1, tests) * 2 / 2**count < LEVEL)


def _clause(group: str, gaps: Mapping[str, Mapping[str, float]]) -> str:
    """The metrics of a group in which a memory differs from the baseline; empty if none of them is known."""
    named: dict[str, list[str]] = {"better": [], "worse": []}
    known = False
    for name, metric in METRICS.items():
        gap = gaps.get(name)
        if gap is None or metric.group != group or metric.better == "neither":
            continue
        known = True
        if is_significant(gap):
            mark = "" if stands_correction(gap) else UNCORRECTED
            direction = "better" if (gap["mean"] > 0) == (metric.better == "higher") else "worse"
            named[direction].append(metric.heading.removeprefix("sprites: ") + mark)
    parts = [f"{word} in {listed(names)}" for word, names in named.items() if names]
    return f"{group}: {', '.join(parts) or 'no significant difference'}" if known else ""


COLUMNS = ("backbone", "memory", "seconds", "prompt_number", "seed", "prompt", "backend")  # before the metrics
MOST_ROWS = 200_000
MOST_DIFFERENT = {"memory": 200, "backbone": 200, "seconds": 200, "prompt_number": 10_000}  # values of a column
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf(inity)?"  # as ``float`` reads it, but in ASCII, no `1_0`


def as_csv(scored: Sequence[Scored]) -> str:
    """One line a video and horizon."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *METRICS])
    for video in scored:
        case, metrics = video.case, video.scores.metrics
        row = [case.backbone, case.memory, f"{video.seconds:g}", case.number, case.seed, case.prompt, video.backend]
        writer.writerow([*row, *("" if metrics.get(name) is None else metrics[name] for name in METRICS)])
    return file.getvalue()


def from_csv(text: str) -> list[Scored]:
    """The videos of ``as_csv``: all that a comparison needs. Raises ``UnreadableError``.

    Columns of metrics may be missing, and come in any order.
    """
    rows = csv.reader(io.StringIO(text))
    scored: list[Scored] = []
    try:
        header = next(rows, [])
        unknown = [name for name in header if name not in COLUMNS and name not in METRICS]
        missing = [name for name in COLUMNS if name not in header]
        if missing or unknown or len({*header}) < len(header):
            problem = f"the column `{missing[0]}` is missing" if missing else f"unknown or repeated column in {header}"
            raise UnreadableError(shortened(problem, 200), hint="give a `results.csv` of a benchmark", line=1)
        for row in rows:
            if len(scored) == MOST_ROWS:
                raise UnreadableError(f"more than {MOST_ROWS} rows", hint="is it the right file?")
            if len(row) != len(header):
                raise UnreadableError(f"{len(row)} values instead of {len(header)}", line=rows.line_num)
            scored.append(_scored(dict(zip(header, row, strict=True)), line=rows.line_num))
    except csv.Error as error:
        raise UnreadableError(f"not valid CSV: {error}", line=rows.line_num) from None
    if not scored:
        raise UnreadableError("it has no rows")
    _require_plausible(scored)
    return scored


def _require_plausible(scored: Sequence[Scored]) -> None:
    """Raise ``UnreadableError`` for more memories, prompts and so on than a comparison can take."""
    different: Mapping[str, set[object]] = {
        "memory": {video.case.memory for video in scored},
        "backbone": {video.case.backbone for video in scored},
        "seconds": {video.seconds for video in scored},
        "prompt_number": {video.case.number for video in scored},
    }
    for name, values in different.items():
        if len(values) > MOST_DIFFERENT[name]:
            raise UnreadableError(
                f"more than {MOST_DIFFERENT[name]} different values of `{name}`", hint="split the file"
            )


def _scored(row: Mapping[str, str], *, line: int) -> Scored:
    numbers: dict[str, float | None] = {}
    for name in ("seconds", "prompt_number", "seed", *METRICS):
        text = row.get(name, "")
        if not re.fullmatch(NUMBER, text, re.IGNORECASE | re.ASCII) and (text or name not in METRICS):
            raise UnreadableError(f"`{name}` is no number: `{shortened(text, 40)}`", line=line)
        numbers[name] = float(text) if text else None
        if (number := numbers[name]) is not None and not math.isfinite(number):
            raise UnreadableError(f"`{name}` is not finite", line=line)
    for name in ("prompt_number", "seed"):  # a float would round large ones
        if not re.fullmatch(r"-?\d{1,20}", row[name], re.ASCII):
            raise UnreadableError(f"`{name}` is no whole number: `{shortened(row[name], 40)}`", line=line)
    seconds, number, seed = numbers.pop("seconds") or 0.0, int(row["prompt_number"]), int(row["seed"])
    for name in ("prompt_number", "seed"):
        numbers.pop(name)
    if not 0 < seconds <= LONGEST or number < 1:
        raise UnreadableError(f"`seconds` or `prompt_number` is out of range: {seconds:g}, {number}", line=line)
    for name in ("backbone", "memory", "backend"):
        try:
            require_text(row[name])
        except UnreadableError as error:
            raise UnreadableError(f"`{name}`: {error.reason}", hint=error.hint, line=line) from None
    case = Case(row["backbone"], row["memory"], number, row["prompt"], seed)
    return Scored(case, seconds, Scores(frames=0, clips=0, metrics=numbers, per_clip={}), row["backend"])
