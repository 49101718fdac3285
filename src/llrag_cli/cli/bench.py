"""``llrag bench``: memories compared on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llrag_cli.cli.bench_compare import bench_compare, show_comparison
from llrag_cli.cli.bench_leave_and_return import bench_leave_and_return
from llrag_cli.cli.bench_returning import bench_returning
from llrag_cli.cli.bench_score import bench_score
from llrag_cli.cli.bench_speed import bench_speed
from llrag_cli.cli.options import Backend, Device, Dtype, EngineName, Json, Seconds, Set, Variants

if TYPE_CHECKING:
    from llrag_cli.batch.executors import Engine
    from llrag_cli.evaluation.grid import Case, Grid, Variant
    from llrag_cli.evaluation.metrics.inputs import Backend as Models
    from llrag_cli.evaluation.run import Bench

DEFAULT_PROMPTS = 8  # of the embedded model
MOST_PROMPTS = 10_000

bench_app = typer.Typer(invoke_without_command=True)
bench_app.command("score")(bench_score)
bench_app.command("compare")(bench_compare)
bench_app.command("speed")(bench_speed)
bench_app.command("leave-and-return")(bench_leave_and_return)
bench_app.command("returning")(bench_returning)


@bench_app.callback()
def bench(
    context: typer.Context,
    suite: Annotated[
        str | None,
        typer.Option(
            help="A named benchmark: `paper` is LongLive-RAG's grid with small models, three backbones with and "
            "without retrieval at 30, 60 and 120 s"
        ),
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="Bundled preset or YAML file; repeatable; default: tiny"),
    ] = None,
    memories: Annotated[
        list[str] | None,
        typer.Option(
            "--memory",
            metavar="STRATEGY",
            help="Memory strategy, as for generate; repeatable; the first is the baseline; default: none and nearest",
        ),
    ] = None,
    horizons: Annotated[
        list[float] | None, typer.Option("--horizon", help="Length: 60, 2m; repeatable; default: 30", **Seconds)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt per line; tiny has prompts of its own")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Sample this many prompts; default: the whole file, or 8 of tiny's own")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds for each prompt")] = 1,
    seed: Annotated[
        int, typer.Option(help="First seed, also of the sample of prompts; seeds of prompt n are 1000 (n - 1) higher")
    ] = 0,
    variants: Variants = None,
    encoder_variants: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder-variant",
            metavar="NAME=FILE",
            help="Another memory: the preset's, with frames looked up by this retrieval encoder; repeatable",
        ),
    ] = None,
    settings: Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the benchmark; the same command continues an interrupted one",
            show_default="bench, or bench-SUITE",
        ),
    ] = None,
    page_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep report.html below this, such as 2MB: it plays the videos that fit"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show how many videos are missing and how long they take, then stop")
    ] = False,
    backend: Backend = "offline",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    r"""Compare memories on the same prompts and seeds. `benchmark` is the full name of this command.

    Generates the missing videos, scores all of them and compares them in
    pairs. Writes results.json, results.csv and report.html.

    Needs the extra `metrics`: pip install 'llrag\[metrics]'.
    """
    if context.invoked_subcommand is not None:
        return
    from llrag_cli.batch.executors import parse_engine
    from llrag_cli.cli import console
    from llrag_cli.evaluation.metrics.backends import find_backend
    from llrag_cli.evaluation.suites import find_suite
    from llrag_cli.files.durable import require_own
    from llrag_cli.formatting import counted, human, parse_bytes
    from llrag_cli.runs.folder import RunFolder

    executor = parse_engine(engine)
    limit = None if page_size is None else parse_bytes(page_size)
    chosen = None if suite is None else find_suite(suite)
    if chosen is not None:
        backbones, memories = backbones or list(chosen.backbones), memories or list(chosen.memories)
        horizons, count = (
            horizons or list(chosen.horizons),
            chosen.prompts if count is None and prompts is None else count,
        )
    out = out or Path("bench" if suite is None else f"bench-{suite}")
    RunFolder(out).require_writable()
    for name in ("results.json", "results.csv", "report.html"):
        require_own(out / name)
    grid = _grid(
        backbones or ["tiny"],
        _memories(memories or ["none", "nearest"], variants or (), encoder_variants or ()),
        horizons or [30.0],
        prompts,
        count=count,
        seeds=seeds,
        seed=seed,
        settings=settings or (),
    )
    with console.working("loading"):
        models = find_backend(backend, device)
        from llrag_cli.evaluation.metrics.registry import about, ranked_metrics
        from llrag_cli.evaluation.report import SCHEMA, write_report
        from llrag_cli.evaluation.results import compare
        from llrag_cli.evaluation.run import Bench

        benchmark = Bench(out, grid, settings=settings or ())
        cases, missing = list(grid.cases()), benchmark.missing()
    console.note(
        f"{counted(len(cases), 'video')} of {grid.seconds:g} s in {out}: {len(missing)} missing, "
        f"{len(cases) - len(missing)} finished"
    )
    if dry_run:
        _show_plan(benchmark, missing, models, device=device, dtype=dtype, as_json=as_json)
        return
    if executor is None:
        _make(benchmark, missing, device=device, dtype=dtype)
    else:
        unscored = [case for case in cases if not benchmark.is_scored(case, models)]
        _make_elsewhere(benchmark, unscored, executor, title=engine, device=device, dtype=dtype, backend=backend)
    scored = []
    with console.counting("scoring", total=len(cases), resume_with="the same command") as advance:
        for case in cases:
            scored += benchmark.scores(case, models)
            advance(1, f"{case.backbone} {case.memory} {case.number}")
    results = compare(scored, baseline=grid.baseline, ranked=ranked_metrics(models.kind))
    published = None if chosen is None else chosen.published
    files = write_report(out, grid, results, scored, backend=models, published=published, limit=limit)
    if as_json:
        console.result_json({"schema": SCHEMA, **about(models), "baseline": grid.baseline, "results": results})
        return
    show_comparison(results, baseline=grid.baseline)
    if published is not None:
        console.result(f"{published}\n")
    console.result_not_measured(about(models))
    for file in files:
        console.result(str(file))
    if limit is not None and (size := files[-1].stat().st_size) > limit:
        console.note(f"{files[-1].name} has {human(size)}, although it plays no video")


def _memories(strategies: Sequence[str], variants: Sequence[str], encoders: Sequence[str]) -> list[Variant]:
    """The memories to compare, each under a name of its own."""
    from llrag_cli.errors import UsageError
    from llrag_cli.evaluation.grid import encoder_variant, parse_variant, strategy_variant

    memories = [
        *map(strategy_variant, dict.fromkeys(strategies)),
        *map(parse_variant, variants),
        *map(encoder_variant, encoders),
    ]
    names = [memory.name for memory in memories]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two memories are named `{name}`", hint="give each variant a name of its own")
    return memories


def _grid(
    backbones: Sequence[str],
    memories: Sequence[Variant],
    horizons: Sequence[float],
    prompt_file: Path | None,
    *,
    count: int | None,
    seeds: int,
    seed: int,
    settings: Sequence[str],
) -> Grid:
    """The videos of the benchmark; every wrong name is reported before anything is loaded."""
    from llrag_cli.errors import UsageError
    from llrag_cli.evaluation.grid import SEED_STRIDE, Grid, subset
    from llrag_cli.files.prompts import read_prompt_file
    from llrag_cli.models.family import family_of
    from llrag_cli.runs.record import require_length, require_seed

    for backbone in backbones:
        for memory in memories:
            memory.config(backbone, settings)
    if not all(0 < horizon < float("inf") for horizon in horizons):
        raise UsageError("a horizon must be longer than 0 seconds", hint="for example `--horizon 30 --horizon 60`")
    for horizon in horizons:
        require_length(horizon)
    if seeds < 1 or (count is not None and count < 1):
        raise UsageError(
            "a benchmark needs at least one prompt and one seed", hint="`--seeds` and `--count` are at least 1"
        )
    if seeds > SEED_STRIDE:
        raise UsageError(
            f"{seeds} seeds of a prompt are too many",
            hint=f"`--seeds` is at most {SEED_STRIDE}, the distance of prompts",
        )
    if count is not None and count > MOST_PROMPTS:
        raise UsageError(f"{count} prompts are too many", hint=f"`--count` is at most {MOST_PROMPTS}")
    if prompt_file is not None:
        prompts = subset(read_prompt_file(prompt_file), count=count, seed=seed)
    else:
        families = {family_of(memories[0].config(backbone, settings)) for backbone in backbones}
        drawn = families.pop().example_prompts(count or DEFAULT_PROMPTS, seed=seed) if len(families) == 1 else None
        if drawn is None:
            raise UsageError(
                "these backbones need a file of prompts",
                hint="`--prompts FILE`; `llrag download prompts` fetches the 128 of MovieGenBench",
            )
        prompts = tuple(enumerate(drawn, start=1))
    grid = Grid(
        tuple(dict.fromkeys(backbones)),
        tuple(memories),
        tuple(sorted(set(horizons))),
        prompts,
        tuple(range(seed, seed + seeds)),
    )
    for case in grid.cases():
        require_seed(case.seed)
    folders = [case.folder(Path()) for case in grid.cases()]
    if len(set(folders)) < len(folders):
        raise UsageError("two backbones have the same name", hint="rename one of the YAML files")
    return grid


def _make(benchmark: Bench, missing: Sequence[Case], *, device: str, dtype: str) -> None:
    """Generate the missing videos, one after the other, in this process."""
    from llrag_cli.cli import console

    blocks = {case: benchmark.blocks(case) for case in missing}
    with console.counting("generating", total=sum(blocks.values()), resume_with="the same command") as advance:

        def on_block(case: Case, done: int) -> None:
            advance(1, f"{case.backbone} {case.memory} {case.number}, block {done}/{blocks[case]}")

        for _ in benchmark.make(device, dtype, on_block, console.waiting_for):
            pass


def _make_elsewhere(
    benchmark: Bench,
    cases: Sequence[Case],
    executor: Engine,
    *,
    title: str,
    device: str,
    dtype: str,
    backend: str,
) -> None:
    """Generate and score videos as jobs of an engine, one for each."""
    from llrag_cli.cli.gather import gather, require_all
    from llrag_cli.evaluation.run import make_and_score
    from llrag_cli.runs.folder import RunFolder

    folders = {case: RunFolder(case.folder(benchmark.root)) for case in cases}
    blocks = {case: benchmark.blocks(case) for case in cases}
    outcomes = gather(
        executor,
        make_and_score,
        [benchmark.job(case, device=device, dtype=dtype, backend=backend) for case in cases],
        title=f"generating and scoring, {title}",
        total=sum(blocks.values()),
        completed=lambda _: sum(min(blocks[case], folders[case].blocks_committed()) for case in cases),
    )
    require_all(outcomes, [str(folder.path) for folder in folders.values()])


def _show_plan(
    benchmark: Bench, missing: Sequence[Case], models: Models, *, device: str, dtype: str, as_json: bool
) -> None:
    """The missing videos of each backbone, and what they cost: from finished ones, or from a trial of a few blocks.

    Large models are not loaded for a trial.
    """
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.evaluation.trial import trial
    from llrag_cli.formatting import human
    from llrag_cli.models.family import family_of

    table = Table("backbone", "videos", "length", "generating", "scoring", "disk", box=None, pad_edge=False)
    rows = []
    for backbone in benchmark.grid.backbones:
        cases = [case for case in benchmark.grid.cases() if case.backbone == backbone]
        finished = [rate for case in cases if (rate := benchmark.measured(case)) is not None]
        wanted = [case for case in missing if case.backbone == backbone]
        seconds = len(wanted) * benchmark.grid.seconds
        work = seconds * sum(rate[0] for rate in finished) / len(finished) if finished else None
        size = seconds * sum(rate[1] for rate in finished) / len(finished) if finished else None
        unscored = [case for case in cases if not benchmark.is_scored(case, models)]
        scoring = None if unscored else 0.0
        if unscored and family_of(benchmark.config(unscored[0])).bundled:
            with console.working(f"timing a few blocks of {backbone}"):
                rates = trial(benchmark.config(unscored[-1]), unscored[-1].prompt, models, device=device, dtype=dtype)
            work = seconds * rates.generating if work is None else work
            size = seconds * rates.bytes if size is None else size
            scoring = len(unscored) * benchmark.grid.seconds * rates.scoring
        rows.append(
            {
                "backbone": backbone,
                "videos": len(wanted),
                "seconds_of_video": seconds,
                "seconds_of_work": work if work is None else round(work, 1),
                "seconds_of_scoring": scoring if scoring is None else round(scoring, 1),
                "bytes": size if size is None else round(size),
            }
        )
        unknown = "known after the first video"
        table.add_row(
            backbone,
            str(len(wanted)),
            f"{seconds:.0f} s",
            *(unknown if each is None else f"{each / 60:.1f} min" for each in (work, scoring)),
            unknown if size is None else human(size),
        )
    if as_json:
        console.result_json(rows)
    else:
        console.result_table(table)
