"""Writes the tables of measurements in docs/*.md from the CSV files beside them: ``python docs/write_tables.py``.

A table stands between two comments, ``<!-- table: KIND FILE ... -->`` and ``<!-- end of table -->``:

    leave-and-return FILE       shares of each shot, and differences of `memory`
    returning FILE [VARIANT...] means of each condition, and differences; variants are compared with `nearest`
    bench FILE BASELINE         as `llrag bench compare FILE --baseline BASELINE --markdown` prints it
    ranks FILE BASELINE         of the same, the ranks and the objects kept, of all backbones and lengths
    encoders FILE               retrieval accuracy of keys, and paired differences in recall
    panoramas FILE              of `benchmarks/memory.py`: means of each memory, and differences
    memory-costs FILE           block times, archive and traffic of memory rules
    full-size FILE              time and memory of commands with models of the released size
    gpu-counts FILE             what a block asks of a GPU
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from llrag_cli.cli import bench_compare
from llrag_cli.evaluation import statistics
from llrag_cli.evaluation.leave_return import judge, report, study
from llrag_cli.evaluation.metrics.registry import ranked_metrics
from llrag_cli.evaluation.report import RANKS, rank_text
from llrag_cli.evaluation.results import LEVEL, UNCORRECTED, compare, from_csv
from llrag_cli.evaluation.returning import judge as returning_judge
from llrag_cli.evaluation.returning import plan as returning_plan
from llrag_cli.evaluation.returning import report as returning_report
from llrag_cli.evaluation.returning import study as returning_study
from llrag_cli.formatting import human

DOCS = Path(__file__).parent
TABLE = re.compile(r"(<!-- table: ([^>]*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> int:
    """Write every table again; returns how many pages have changed."""
    changed = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        written = TABLE.sub(lambda found: f"{found[1]}\n{made(found[2].split())}\n\n{found[3]}", text)
        if written != text:
            page.write_text(written, encoding="utf-8")
            changed += 1
    return changed


def made(words: Sequence[str]) -> str:
    """The table that a comment asks for."""
    kind, file, *variants = words
    if kind == "bench":
        return bench_table((DOCS / file).read_text(encoding="utf-8"), baseline=variants[0])
    if kind == "ranks":
        return ranks_table((DOCS / file).read_text(encoding="utf-8"), baseline=variants[0])
    with (DOCS / file).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    if kind == "returning":
        return returning_table(rows, variants)
    return TABLES[kind](rows)


def full_size_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Of ``benchmarks/full_size.py``."""
    cells = [["command", "processor time", "planned", "own memory", "resident, with mapped files"]]
    for line in lines:
        plan = human(float(line["planned"])) if line["planned"] else "-"
        held = (human(float(line[name])) for name in ("own", "resident"))
        cells.append([line["step"], f"{float(line['processor_seconds']):.0f} s", plan, *held])
    return markdown(cells)


def gpu_counts_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Of ``benchmarks/gpu_counts.py``."""
    columns: dict[str, tuple[str, Callable[[str], str]]] = {
        "kernels": ("kernels", lambda text: f"{int(text):,}"),
        "graphs": ("graphs", str),
        "TFLOP": ("flops", lambda text: f"{int(text) / 1e12:.1f}"),
        "read and written": ("traffic", size),
        "of that, by copies of the context": ("gather_traffic", size),
        "copied to the GPU": ("to_device", size),
        "copied to the host": ("to_host", size),
        "peak": ("peak", size),
        "planned": ("planned", size),
    }
    cells = [["a block", *columns]]
    cells += [[line["case"], *(show(line[name]) for name, show in columns.values())] for line in lines]
    return markdown(cells)


def memory_costs_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Of ``benchmarks/memory_costs.py``."""
    cells = [["rule", "block time ratio", "archive of a video of 60 s", "copied for a block"]]
    for line in lines:
        ratios = (f"{float(line[name]):.2f}" for name in ("ratio", "quarter", "three_quarters"))
        times = "1" if line["rule"] == "nearest" else "{} [{}, {}]".format(*ratios)
        cells.append([f"`{line['rule']}`", times, *(size(line[name]) for name in ("archive", "copied"))])
    return markdown(cells)


EMBEDDED = "embedded encoder"
WITHOUT = " without delta loss"


def encoders_table(lines: Sequence[Mapping[str, str]]) -> str:
    """As ``llrag evaluate-encoder`` shows it, and paired differences in recall."""
    by_keys: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for line in lines:
        by_keys.setdefault((line["set"], line["keys"]), []).append(line)
    heads = ["world", "keys", "recall@6", "unguarded", "MRR", "cosine, 1 frame apart", "8 apart", "near guard"]
    cells, gaps = [[*heads, "effective rank"]], [["world", "difference", "recall@6"]]
    for (title, keys), videos in by_keys.items():
        world = title.removeprefix("objects differ in ").partition(":")[0]
        values, clusters = of_queries(videos, "recall")
        means = (weighted(videos, name, "queries") for name in ("unguarded_recall", "reciprocal_rank"))
        apart = [sum(float(video[f"similarity_{lag}"]) for video in videos) / len(videos) for lag in (1, 8)]
        recall = "{:.3f} [{:.2f}, {:.2f}]".format(*statistics.interval(values, clusters=clusters))
        near = f"{100 * weighted(videos, 'near_guard', 'blocks'):.0f} %"
        rank = f"{float(videos[0]['effective_rank']):.1f}"
        cells.append([world, keys, recall, *(f"{value:.3f}" for value in (*means, *apart)), near, rank])
        compared = [] if keys == EMBEDDED else [EMBEDDED]
        if (title, whole := keys.removesuffix(WITHOUT)) in by_keys and keys != whole:
            compared.append(whole)
        for name in compared:
            own, _ = of_queries(by_keys[title, name], "recall")
            found = [one - other for one, other in zip(own, values, strict=True)]
            gap = "{:+.3f} [{:+.2f}, {:+.2f}]".format(*statistics.interval(found, clusters=clusters))
            gaps.append([world, f"{name} - {keys}", gap])
    return f"{markdown(cells)}\n\n{markdown(gaps)}"


SHOWN = ("color", "identity", "returns", "tint")  # columns of a study of panoramas
NATIVE, RANDOM = "native window", "random"


def panoramas_table(lines: Sequence[Mapping[str, str]]) -> str:
    """Means over videos, each the mean of its stretches, and paired differences, corrected for all tests (Holm)."""
    parts: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = {}
    for line in lines:
        video = parts.setdefault(line["memory"], {}).setdefault((line["prompt"], line["seed"]), {})
        for name in SHOWN:
            video.setdefault(name, []).extend([float(line[name])] if line[name] else [])
    prompts = [prompt for prompt, _ in parts[NATIVE]]

    def values(memory: str, name: str) -> list[float]:
        found = [parts[memory][video][name] for video in parts[NATIVE]]
        return [sum(each) / len(each) if each else nan for each in found]

    heads = ["colour", "identity", "returns", "wall's drift (less is better)"]
    means = [["memory", *heads]]
    for memory in parts:
        known = (estimate(values(memory, name), prompts) for name in SHOWN)
        means.append([memory, *(interval(each, digits=3) for each in known)])
    gaps: dict[tuple[str, str], list[dict[str, float] | None]] = {}
    for other in (NATIVE, RANDOM):
        for memory in (name for name in parts if name not in (other, NATIVE)):
            for name in SHOWN:
                found = [a - b for a, b in zip(values(memory, name), values(other, name), strict=True)]
                gap = estimate(found, prompts)
                if gap is not None:
                    gap["p"] = statistics.sign_flip_test(found, clusters=prompts)
                gaps.setdefault((memory, other), []).append(gap)
    tested = [gap for row in gaps.values() for gap in row if gap is not None]
    for gap, corrected in zip(tested, statistics.holm([gap["p"] for gap in tested]), strict=True):
        gap["p_corrected"] = corrected
    differences = [["difference", *heads]]
    for (memory, other), row in gaps.items():
        cells = (interval(gap, sign="+", digits=3) for gap in row)
        marks = ["" if gap is None or stands(gap) else UNCORRECTED for gap in row]
        differences.append([f"{memory} - {other}", *(cell + mark for cell, mark in zip(cells, marks, strict=True))])
    return f"{markdown(means)}\n\n{markdown(differences)}"


def estimate(values: Sequence[float], clusters: Sequence[str]) -> dict[str, float] | None:
    """A mean and its interval; None if no value is known."""
    found = dict(zip(("mean", "low", "high"), statistics.interval(values, clusters=clusters), strict=True))
    return None if isnan(found["mean"]) else found


def of_queries(videos: Sequence[Mapping[str, str]], name: str) -> tuple[list[float], list[str]]:
    """A value of each query, which is the mean of its video, and the video; the same queries for all kinds of keys."""
    known = [(float(video[name]), video["video"]) for video in videos for _ in range(int(video["queries"]))]
    return [value for value, _ in known], [video for _, video in known]


def weighted(videos: Sequence[Mapping[str, str]], name: str, weight: str) -> float:
    """A mean over queries or blocks, from those of videos."""
    known = [(float(video[name]), int(video[weight])) for video in videos if int(video[weight])]
    return sum(value * count for value, count in known) / sum(count for _, count in known)


def size(text: str) -> str:
    """Bytes, as a person reads them."""
    return human(float(text))


def bench_table(text: str, *, baseline: str) -> str:
    """As ``llrag bench compare`` shows it."""
    return bench_compare.markdown_tables(compared(text, baseline), baseline=baseline)


def ranks_table(text: str, *, baseline: str) -> str:
    """One line for each backbone, length and memory: both ranks, and the share of objects that are kept."""
    rows = [["backbone", "length", "memory", "average rank", "drift rank", "objects kept", f"minus `{baseline}`"]]
    for result in compared(text, baseline):
        for memory, entry in result["memories"].items():
            kept, gap = entry["means"].get("sprite_identity"), entry.get("differences", {}).get("sprite_identity")
            ranks = [rank_text(entry[name]) for name in RANKS]
            shares = ["-" if kept is None else f"{kept:.2f}", interval(gap, sign="+") if gap else "-"]
            rows.append([f"`{result['backbone']}`", f"{result['seconds']:g} s", f"`{memory}`", *ranks, *shares])
    return markdown(rows)


def compared(text: str, baseline: str) -> list[dict[str, Any]]:
    """What the CSV of a benchmark gives."""
    scored = from_csv(text)
    return compare(scored, baseline=baseline, ranked=ranked_metrics(scored[0].backend.partition(":")[0]))


def leave_and_return_table(lines: Sequence[Mapping[str, str]]) -> str:
    """As ``llrag bench leave-and-return`` shows it."""
    rows = [
        study.Row(
            int(line["scene"]),
            int(line["seed"]),
            line["shot"],
            *(
                judge.Shares(**{measure: float(line[f"{measure}_of_{place}"]) for measure in report.MEASURES})
                for place in "ab"
            ),
            float(line["retrieved_of_a"]) if line["retrieved_of_a"] else None,
        )
        for line in lines
    ]
    content = report.summary(rows, {})
    cells = [["", "wall", "colours", "shapes"]]
    cells += [
        [f"`{shot}`", *(interval(each) for each in found["of_a"].values())] for shot, found in content["shots"].items()
    ]
    gaps = content["differences"]["memory"]
    cells += [[f"`memory` - `{other}`", *(interval(each, sign="+") for each in gaps[other].values())] for other in gaps]
    return markdown(cells)


def returning_table(lines: Sequence[Mapping[str, str]], variants: Sequence[str]) -> str:
    """As ``llrag bench returning`` shows it: whole continuations, whose lines are the first of each."""
    whole: dict[tuple[str, str, str], Mapping[str, str]] = {}
    for line in lines:
        whole.setdefault((line["scene"], line["seed"], line["condition"]), line)
    rows = [
        returning_study.Row(
            int(line["scene"]),
            int(line["seed"]),
            line["condition"],
            returning_judge.Measures(
                **{name: float(line[name]) if line[name] else None for name in returning_report.MEASURES}  # type: ignore[arg-type]
            ),
            (),
            float(line["retrieved_of_a"]) if line["retrieved_of_a"] else None,
        )
        for line in whole.values()
    ]
    conditions = [name for name in dict.fromkeys(row.shot for row in rows) if name != returning_plan.AGAIN]
    settings = {"conditions": conditions, "variants": dict.fromkeys(variants, ())}
    content = returning_report.summary(rows, settings)
    titles = [measure.title for measure in returning_report.MEASURES.values()]
    means = [["", *titles, "retrieved from A"]]
    for name, found in content["conditions"].items():
        known = found["retrieved_of_a"]
        means.append(
            [
                f"`{name}`",
                *(interval(each) for each in found["whole"].values()),
                "-" if known is None else f"{known:.2f}",
            ]
        )
    gaps = [["difference", *titles]]
    for gap in content["differences"]:
        marks = [
            "" if each is None or stands(each) else UNCORRECTED
            for each in (gap[name] for name in returning_report.MEASURES)
        ]
        values = [interval(gap[name], sign="+") for name in returning_report.MEASURES]
        gaps.append(
            [
                f"`{gap['condition']}` - `{gap['minus']}`",
                *(value + mark for value, mark in zip(values, marks, strict=True)),
            ]
        )
    return f"{markdown(means)}\n\n{markdown(gaps)}"


TABLES = {
    "leave-and-return": leave_and_return_table,
    "encoders": encoders_table,
    "panoramas": panoramas_table,
    "memory-costs": memory_costs_table,
    "full-size": full_size_table,
    "gpu-counts": gpu_counts_table,
}


def stands(gap: Mapping[str, float]) -> bool:
    """Whether a difference is not significant at all, or significant after the correction too."""
    return gap["low"] <= 0 <= gap["high"] or gap["p_corrected"] < LEVEL


def interval(value: Mapping[str, float] | None, *, sign: str = "", digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    if value is None:
        return "-"
    mean, low, high = (format(value[name], f"{sign}.{digits}f") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
