"""What the commands share that run a study: generate what is missing, write the files, show tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from llrag_cli.config import RunConfig
    from llrag_cli.evaluation.study import RowT, StudyFolder

Scenes = Annotated[int, typer.Option(help="Number of scenes: the first ones of the pool, at most 48")]
Seeds = Annotated[int, typer.Option(help="Videos of each scene")]
PoolName = Annotated[str, typer.Option(help="Scenes: `search` to try things out, `confirm` only for final numbers")]
Out = Annotated[Path, typer.Option(help="Folder of the results; the same command continues an interrupted run")]


def run_study(study: StudyFolder[RowT], config: RunConfig) -> None:
    """Generate the missing rows; weights are read only if there are any."""
    from llrag_cli.cli import console

    if not (missing := study.missing()):
        return
    with console.working("loading"):
        from llrag_cli.engine.pipeline import Pipeline

        pipeline = Pipeline.load(config)
    with console.counting("generating", total=len(missing), resume_with="the same command") as advance:

        def on_row(row: RowT) -> None:
            advance(1, f"scene {row.scene}, {row.shot}")

        study.run(pipeline, on_row)


def write_results(out: Path, content: Mapping[str, Any], *, rows: str, picture: bytes) -> None:
    """Write results.json, results.csv and sheet.png."""
    import json

    from llrag_cli.files.durable import replace_text, replacing

    with replacing(out / "sheet.png") as partial:
        partial.write_bytes(picture)
    replace_text(out / "results.csv", rows)
    replace_text(out / "results.json", json.dumps(content, indent=1) + "\n")


def show_study(tables: Sequence[Table], sentence: str, *, out: Path) -> None:
    """The tables, the sentence, and where the files are."""
    from llrag_cli.cli import console

    for table in tables:
        console.result_table(table)
        console.result("")
    console.result(sentence + "\n")
    for name in ("results.json", "results.csv", "sheet.png"):
        console.result(str(out / name))


def study_table(title: str, headings: Iterable[str]) -> Table:
    """An empty table; the first column names the row."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def share(value: Mapping[str, float] | None, *, digits: int = 2) -> str:
    """A mean with its interval; None is a dash."""
    return _with_interval(value, f".{digits}f")


def difference(value: Mapping[str, float] | None, *, digits: int = 2) -> str:
    """A mean difference with its interval; None is a dash."""
    return _with_interval(value, f"+.{digits}f")


def _with_interval(value: Mapping[str, float] | None, form: str) -> str:
    if value is None:
        return "-"
    mean, low, high = (format(value[name], form) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
