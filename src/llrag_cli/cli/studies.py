"""What the commands share that run a study: generate what is missing, write the files, show tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from llrag_cli.config import RunConfig
    from llrag_cli.errors import RunLockedError
    from llrag_cli.evaluation.study import RowT, StudyFolder
    from llrag_cli.evaluation.study_plan import Key, Step

Scenes = Annotated[int, typer.Option(help="Number of scenes: the first ones of the pool, at most 48")]
Seeds = Annotated[int, typer.Option(help="Videos of each scene")]
PoolName = Annotated[str, typer.Option(help="Scenes: `search` to try things out, `confirm` only for final numbers")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what is missing, how long it takes and how much disk it needs, then stop"),
]
Out = Annotated[Path, typer.Option(help="Folder of the results; the same command continues an interrupted run")]


class StudyPlan(Protocol):
    """What a study makes."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What has to agree with those of the folder."""

    def row_keys(self) -> Iterator[Key]:
        """All rows."""


def missing_rows(plan: StudyPlan, out: Path) -> list[Key]:
    """The rows that the folder lacks, counted on stderr; raises as ``finished_keys``, before torch is imported."""
    from llrag_cli.cli import console
    from llrag_cli.evaluation.study_plan import finished_keys
    from llrag_cli.formatting import counted

    keys = [*plan.row_keys()]
    done = finished_keys(out, plan.settings)
    missing = [key for key in keys if key not in done]
    console.note(f"{counted(len(keys), 'row')} in {out}: {len(missing)} missing, {len(keys) - len(missing)} finished")
    return missing


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

        def on_wait(error: RunLockedError, count: int) -> None:
            console.note(f"{error.owner} makes the scenes that are left; waiting")

        study.run(pipeline, on_row, on_wait)


def show_cost(
    steps: Sequence[Step], config: RunConfig, *, out: Path, batch: int, kept: int = 0, as_json: bool = False
) -> None:
    """What is missing of a study, how long it takes and how much disk it needs, from a trial of a few blocks.

    ``batch`` videos are generated together; ``kept`` latent frames are kept as videos. Where nothing is missing, there
    is no trial, and torch is not imported.
    """
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.formatting import human

    rates = None
    if steps:
        with console.working("timing a few blocks"):
            from llrag_cli.engine.pipeline import Pipeline
            from llrag_cli.evaluation.study_trial import trial

            rates = trial(Pipeline.load(config), videos=batch)
    table = Table("shot", "videos", "generated", "replayed", "time", box=None, pad_edge=False)
    rows = []
    for step in steps:
        generated, replayed = (config.second_of(count) for count in (step.generated, step.replayed))
        seconds = 0.0 if rates is None else rates.seconds([step])
        rows.append(
            {
                "shot": step.name,
                "videos": step.videos,
                "seconds_of_video": generated,
                "seconds_replayed": replayed,
                "seconds_of_work": round(seconds, 1),
            }
        )
        minutes = f"{seconds / 60:.1f} min"
        table.add_row(
            f"{step.name}: {step.about}", str(step.videos), f"{generated:.0f} s", f"{replayed:.0f} s", minutes
        )
    work = 0.0 if rates is None else rates.seconds(steps)
    size = 0 if rates is None else round(rates.picture * sum(step.pictures for step in steps) + rates.video * kept)
    if as_json:
        console.result_json({"folder": str(out), "shots": rows, "seconds_of_work": round(work, 1), "bytes": size})
        return
    if steps:
        console.result_table(table)
    console.result(f"about {work / 60:.1f} min and {human(size)} in {out}" if steps else f"nothing is missing in {out}")


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
