"""``llrag bench leave-and-return``: does memory bring a place back that the prompt does not describe?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llrag_cli.cli.options import Json, Set
from llrag_cli.cli.studies import (
    DryRun,
    Out,
    PoolName,
    Scenes,
    Seeds,
    difference,
    missing_rows,
    run_study,
    share,
    show_cost,
    show_study,
    study_table,
    write_results,
)

if TYPE_CHECKING:
    from rich.table import Table


def bench_leave_and_return(
    scenes: Scenes = 24,
    seeds: Seeds = 2,
    pool: PoolName = "search",
    out: Out = Path("leave-and-return"),
    dry_run: DryRun = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Leave a place and return under a prompt that names nothing of it: what does memory bring back?

    Runs on the embedded model. Shot A shows a place with a full prompt, shot B
    another place after a cut, and shot C, after a second cut, only says "a shape in
    front of a wall". What C shows of A is measured with memory of A and under four
    controls. Writes results.json, results.csv and sheet.png.
    """
    from dataclasses import asdict

    from llrag_cli.cli import console
    from llrag_cli.evaluation.leave_return.plan import Plan
    from llrag_cli.evaluation.study_plan import require_pool
    from llrag_cli.presets import load_config
    from llrag_cli.runs.folder import RunFolder

    config = load_config("tiny", settings=settings or ())
    plan = Plan(require_pool(pool), scenes, seeds, config)
    RunFolder(out).require_writable()
    missing = missing_rows(plan, out)
    if dry_run:
        show_cost(plan.steps(missing), config, out=out, batch=seeds, as_json=as_json)
        return
    with console.working("loading"):
        from llrag_cli.evaluation.leave_return.picture import sheet
        from llrag_cli.evaluation.leave_return.report import rows_csv, summary
        from llrag_cli.evaluation.leave_return.study import Study

        study = Study(out, plan)
    run_study(study, config)
    results = summary(study.rows, plan.settings)
    content = {**results, "rows": [asdict(row) for row in study.rows]}
    write_results(out, content, rows=rows_csv(study.rows), picture=sheet(study))
    if as_json:
        console.result_json(content)
    else:
        show_study(_tables(results), results["sentence"], out=out)


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """Shares and differences, with their intervals."""
    from llrag_cli.evaluation.leave_return.picture import ABOUT
    from llrag_cli.evaluation.leave_return.report import MEASURES

    title = f"what is seen of place A, {results['scenes']} scenes, {results['videos']} videos"
    shares = study_table(title, (*MEASURES.values(), "B's wall", "retrieved from A"))
    for shot, entry in results["shots"].items():
        row = [share(entry["of_a"][measure]) for measure in MEASURES]
        known = entry["retrieved_of_a"]
        other = share(entry["of_b"]["wall"])
        shares.add_row(f"{shot}: {ABOUT[shot]}", *row, other, "-" if known is None else f"{known:.2f}")
    gaps = study_table("paired differences", MEASURES.values())
    for shot, others in results["differences"].items():
        for other, gap in others.items():
            gaps.add_row(f"{shot} minus {other}", *(difference(gap[measure]) for measure in MEASURES))
    return [shares, gaps]
