"""``llrag bench compare``: the tables of a benchmark, made again from its results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Json

if TYPE_CHECKING:
    from llrag_cli.errors import UsageError
    from llrag_cli.evaluation.report import Table as Overview
    from llrag_cli.evaluation.run import Scored


def bench_compare(
    files: Annotated[list[Path], typer.Argument(metavar="CSV", help="results.csv of one or more benchmarks")],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MEMORY", help="Memory that the others are compared with; default: the first in the file"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown")] = False,
    as_json: Json = False,
) -> None:
    """Compare the memories of a results.csv again, with the same statistics.

    Rows of several files are put together: the same prompts and seeds under
    other memories, or further prompts. No video is needed.
    """
    from llrag_cli.cli import console
    from llrag_cli.errors import UsageError, closest
    from llrag_cli.evaluation.metrics.backends import BACKENDS

    texts = [_text(path) for path in files]  # before torch is imported
    from llrag_cli.evaluation.metrics.registry import ranked_metrics
    from llrag_cli.evaluation.results import compare

    scored = [video for path, text in zip(files, texts, strict=True) for video in _videos(path, text)]
    memories = [*dict.fromkeys(video.case.memory for video in scored)]
    keys = [(video.case, video.seconds) for video in scored]
    if len({*keys}) < len(keys):
        raise UsageError("a video is in the files twice", hint="give each results.csv once")
    if baseline is not None and baseline not in memories:
        raise UsageError(f"unknown memory `{baseline}`", hint=closest(baseline, memories))
    chosen = baseline or memories[0]
    kind = scored[0].backend.partition(":")[0]
    if kind not in BACKENDS:
        raise UsageError(f"unknown backend `{kind}` in `{files[0]}`", hint=closest(kind, BACKENDS))
    results = compare(scored, baseline=chosen, ranked=ranked_metrics(kind))
    if not results:
        raise UsageError("no video is there under every memory", hint="compare memories of the same prompts and seeds")
    if as_json:
        console.result_json({"baseline": chosen, "results": results})
    elif markdown:
        console.result(markdown_tables(results, baseline=chosen))
    else:
        show_comparison(results, baseline=chosen)


def _text(path: Path) -> str:
    """The content of one file."""
    from llrag_cli.files.guarded import MEGABYTE, UnreadableError, decoded, read_bytes

    try:
        return decoded(read_bytes(path, limit=64 * MEGABYTE))
    except (OSError, UnreadableError) as error:
        raise _unreadable(path, error) from error


def _videos(path: Path, text: str) -> list[Scored]:
    """The videos of one file."""
    from llrag_cli.evaluation.results import from_csv
    from llrag_cli.files.guarded import UnreadableError

    try:
        return from_csv(text)
    except UnreadableError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    from llrag_cli.errors import UsageError
    from llrag_cli.files.guarded import UnreadableError, reason_of

    hint = error.hint if isinstance(error, UnreadableError) else "give the results.csv of a benchmark"
    return UsageError(f"`{path}` cannot be read: {reason_of(error)}", hint=hint)


def show_comparison(results: Sequence[Mapping[str, Any]], *, baseline: str) -> None:
    """The tables and verdicts of a comparison, and all of them in one table."""
    from llrag_cli.evaluation.report import overview

    for result in results:
        _show(result, baseline=baseline)
    if (table := overview(results)) is not None:
        _show_overview(table)


def markdown_tables(results: Sequence[Mapping[str, Any]], *, baseline: str) -> str:
    """The tables and verdicts of a comparison in Markdown."""
    from llrag_cli.evaluation.report import markdown, overview, table
    from llrag_cli.evaluation.results import verdict

    parts = []
    for result in results:
        said = verdict(result, baseline=baseline)
        parts += [markdown(table(result, baseline=baseline)), "\n".join(f"- {line}" for line in said.lines)]
    if (glance := overview(results)) is not None:
        parts.append(markdown(glance))
    return "\n\n".join(parts)


def _show(result: Mapping[str, Any], *, baseline: str) -> None:
    """The table and verdict of one backbone and horizon."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.evaluation.grid import memory_title
    from llrag_cli.evaluation.metrics.registry import METRICS
    from llrag_cli.evaluation.report import RANKS, rank_text
    from llrag_cli.evaluation.results import verdict
    from llrag_cli.formatting import counted

    memories: Mapping[str, Mapping[str, Any]] = result["memories"]
    table = Table(
        title=f"{result['backbone']}, {result['seconds']:g} s, {counted(result['prompts'], 'prompt')}, "
        f"{result['videos']} videos of each memory",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    table.add_column("metric")
    for memory, entry in memories.items():
        below = f"\nminus {baseline}" if "differences" in entry else ""
        table.add_column(f"{memory_title(memory)}{below}", justify="right")
    for name, metric in METRICS.items():
        row = [metric.heading + (" (ranked)" if name in result["ranked_by"] else "")]
        for entry in memories.values():
            gap = entry.get("differences", {}).get(name)
            below = "" if gap is None else f"\n{_interval(gap)}"
            row.append(console.number(entry["means"].get(name)) + below)
        if any(cell != "-" for cell in row[1:]):
            table.add_row(*row)
    for name, heading in RANKS.items():
        table.add_row(heading, *(rank_text(entry[name]) for entry in memories.values()))
    console.result_table(table)
    if result["not_ranked"]:
        console.result(f"not ranked: {result['not_ranked']}")
    console.result(f"{verdict(result, baseline=baseline)}\n")


def _show_overview(overview: Overview) -> None:
    """Every backbone, memory and horizon, a line each."""
    from rich.table import Table

    from llrag_cli.cli import console

    table = Table(overview.corner, title=overview.title, title_justify="left", title_style="", box=None, pad_edge=False)
    for column in overview.columns:
        table.add_column(column, justify="right")
    for row in overview.rows:
        table.add_row(row.heading, *("\n".join((cell.text, *cell.below)) for cell in row.cells))
    console.result_table(table)


def _interval(gap: Mapping[str, float]) -> str:
    return f"{gap['mean']:+.4f}\n[{gap['low']:+.4f}, {gap['high']:+.4f}]"
