"""``llrag bench leave-and-return``: does memory bring a place back that the prompt does not describe?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llrag_cli.cli.options import Json, Set


def bench_leave_and_return(
    scenes: Annotated[int, typer.Option(help="Number of scenes: the first ones of the pool, at most 48")] = 24,
    seeds: Annotated[int, typer.Option(help="Videos of each scene")] = 2,
    pool: Annotated[
        str, typer.Option(help="Scenes: `search` to try things out, `confirm` only for final numbers")
    ] = "search",
    out: Annotated[
        Path, typer.Option(help="Folder of the results; the same command continues an interrupted run")
    ] = Path("leave-and-return"),
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Leave a place and return under a prompt that names nothing of it: what does memory bring back?

    Runs on the embedded model. Shot A shows a place with a full prompt, shot B
    another place after a cut, and shot C, after a second cut, only says "a shape in
    front of a wall". What C shows of A is measured with memory of A and under four
    controls. Writes results.json, results.csv and sheet.png.
    """
    import json
    from dataclasses import asdict

    from llrag_cli.cli import console
    from llrag_cli.errors import UsageError, closest
    from llrag_cli.presets import load_config
    from llrag_cli.runs.folder import RunFolder

    config = load_config("tiny", settings=settings or ())
    RunFolder(out).require_writable()
    with console.working("loading"):
        from llrag_cli.engine.pipeline import Pipeline
        from llrag_cli.evaluation.leave_return.picture import sheet
        from llrag_cli.evaluation.leave_return.report import rows_csv, summary
        from llrag_cli.evaluation.leave_return.study import Plan, Row, Study
        from llrag_cli.evaluation.leave_return.trips import POOLS
        from llrag_cli.files.durable import replace_text, replacing

        if pool not in POOLS:
            raise UsageError(f"unknown pool `{pool}`", hint=closest(pool, POOLS))
        plan = Plan(pool, scenes, seeds, config)
        study = Study(out, plan)
        missing = study.missing()
        pipeline = Pipeline.load(config) if missing else None
    if pipeline is not None:
        with console.counting("generating", total=len(missing), resume_with="the same command") as advance:

            def on_row(row: Row) -> None:
                advance(1, f"scene {row.scene}, {row.shot}")

            study.run(pipeline, on_row)
    results = summary(study.rows, plan.settings)
    content = {**results, "rows": [asdict(row) for row in study.rows]}
    with replacing(out / "sheet.png") as partial:
        partial.write_bytes(sheet(study))
    replace_text(out / "results.csv", rows_csv(study.rows))
    replace_text(out / "results.json", json.dumps(content, indent=1) + "\n")
    if as_json:
        console.result_json(content)
        return
    _show(results)
    for name in ("results.json", "results.csv", "sheet.png"):
        console.result(str(out / name))


def _show(results: Mapping[str, Any]) -> None:
    """Shares and differences, with their intervals, and the sentence."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.evaluation.leave_return.picture import ABOUT
    from llrag_cli.evaluation.leave_return.report import MEASURES

    def table(title: str) -> Table:
        made = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
        made.add_column("")
        for heading in MEASURES.values():
            made.add_column(heading, justify="right")
        return made

    shares = table(f"what is seen of place A, {results['scenes']} scenes, {results['videos']} videos")
    shares.add_column("B's wall", justify="right")
    shares.add_column("retrieved from A", justify="right")
    for shot, entry in results["shots"].items():
        row = [_share(entry["of_a"][measure]) for measure in MEASURES]
        known = entry["retrieved_of_a"]
        other = _share(entry["of_b"]["wall"])
        shares.add_row(f"{shot}: {ABOUT[shot]}", *row, other, "-" if known is None else f"{known:.2f}")
    gaps = table("paired differences")
    for shot, others in results["differences"].items():
        for other, gap in others.items():
            gaps.add_row(f"{shot} minus {other}", *(_difference(gap[measure]) for measure in MEASURES))
    for each in (shares, gaps):
        console.result_table(each)
        console.result("")
    console.result(results["sentence"] + "\n")


def _share(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _difference(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"
