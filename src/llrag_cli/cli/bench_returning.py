"""``llrag bench returning``: does a scene that comes back stay as it was?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import BackboneName, Json, Seconds, Set, Variants
from llrag_cli.cli.studies import (
    DryRun,
    Out,
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

    from llrag_cli.evaluation.returning.plan import Plan


def bench_returning(
    scenes: Scenes = 24,
    seeds: Seeds = 1,
    pool: Annotated[
        str,
        typer.Option(
            help="Scenes: `search` or `search-2` to try things out, `confirm` or `confirm-2` only for final numbers"
        ),
    ] = "search",
    seconds: Annotated[float, typer.Option(help="How long the scene goes on after its return", **Seconds)] = 60.0,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Memory to measure: native, nearest, random, first or times; repeatable, all by default",
        ),
    ] = None,
    variants: Variants = None,
    videos: Annotated[
        int, typer.Option(min=0, help="Keep the continuations of the first N scenes as videos, for `bench score`")
    ] = 0,
    out: Out = Path("returning"),
    dry_run: DryRun = False,
    backbone: BackboneName = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Return to a scene after two others and go on: does retrieval keep the scene as it was?

    Runs on the embedded model. Scenes C, A and B and 6 s of A again are
    generated from full prompts and joined. From there A goes on under a
    caption that leaves most of it out: with the plain window, with the nearest
    frames, and under three controls. The continuation is compared with A's own
    frames. Writes results.json, results.csv and sheet.png.
    """
    from dataclasses import asdict

    from llrag_cli.cli import console
    from llrag_cli.cli.options import configuration
    from llrag_cli.evaluation.grid import parse_variant
    from llrag_cli.evaluation.returning.plan import AGAIN, CONDITIONS, SCENES_AT_ONCE, Plan
    from llrag_cli.evaluation.study_plan import RETURN_POOLS, require_pool
    from llrag_cli.runs.folder import RunFolder

    config = configuration(backbone, settings=settings or ())
    more = tuple(parse_variant(text) for text in variants or ())
    plan = Plan(require_pool(pool, RETURN_POOLS), scenes, seeds, seconds, tuple(condition or CONDITIONS), config, more)
    RunFolder(out).require_writable()
    missing = missing_rows(plan, out)
    if dry_run:
        kept = sum(scene <= videos and shot != AGAIN for scene, _, shot in missing) * plan.latent_frames(seconds)
        batch = min(SCENES_AT_ONCE * seeds, len({key[:2] for key in missing}))
        show_cost(plan.steps(missing), config, out=out, batch=batch, kept=kept, as_json=as_json)
        return
    with console.working("loading"):
        from llrag_cli.evaluation.returning.picture import sheet
        from llrag_cli.evaluation.returning.report import rows_csv, summary
        from llrag_cli.evaluation.returning.study import Study

        study = Study(out, plan, videos=videos)
    run_study(study, config)
    results = summary(study.rows, plan.settings)
    content = {**results, "rows": [asdict(row) for row in study.rows]}
    count = plan.latent_frames(seconds)
    table = rows_csv(study.rows, count=count, seconds=config.second_of(count))
    write_results(out, content, rows=table, picture=sheet(study))
    if as_json:
        console.result_json(content)
    else:
        sentence = "\n".join([results["sentence"], *results["variants"]])
        show_study(_tables(results, plan), sentence, out=out)


def _tables(results: Mapping[str, Any], plan: Plan) -> list[Table]:
    """Means and differences, with their intervals."""
    from llrag_cli.evaluation.returning.plan import AGAIN
    from llrag_cli.evaluation.returning.report import MEASURES
    from llrag_cli.formatting import counted

    headings = [measure.title for measure in MEASURES.values()]
    title = (
        f"compared with A's own frames, {counted(results['scenes'], 'scene')}, {counted(results['videos'], 'video')} "
        "of each condition; of size error and wall tint less is better"
    )
    means = study_table(title, (*headings, "retrieved from A"))
    for name, entry in results["conditions"].items():
        about = "A's given return" if name == AGAIN else plan.measured[name].about
        known = entry["retrieved_of_a"]
        cells = [share(entry["whole"][measure], digits=3) for measure in MEASURES]
        means.add_row(f"{name}: {about}", *cells, "-" if known is None else f"{known:.2f}")
    gaps = study_table("paired differences", headings)
    for gap in results["differences"]:
        cells = [difference(gap[measure], digits=3) for measure in MEASURES]
        gaps.add_row(f"{gap['condition']} minus {gap['minus']}", *cells)
    return [means, gaps]
