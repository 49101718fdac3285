"""``llrag bench``: memories compared on the same prompts and seeds; ``bench score``: figures of any video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llrag_cli.batch.executors import Engine, parse_engine
from llrag_cli.cli import console
from llrag_cli.cli.gather import gather, require_all
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.evaluation.metrics.backends import find_back_end
from llrag_cli.files.prompts import read_prompt_file
from llrag_cli.formatting import counted, human

if TYPE_CHECKING:
    from llrag_cli.evaluation.grid import Cell, Grid
    from llrag_cli.evaluation.metrics.score import BackEnd, Scores
    from llrag_cli.evaluation.run import Bench

DEFAULT_PROMPTS = 8  # of the embedded model
COLUMNS = {  # field of Scores, heading; columns that a back end leaves empty are not shown
    "consistency_within": "within",
    "consistency_across": "across",
    "consistency_mapped": "mapped",
    "subject_consistency": "subject",
    "background_within": "backgr. within",
    "aesthetic_quality": "aesthetic",
    "motion_smoothness": "smooth",
    "dynamic_degree": "dynamic",
    "temporal_flickering": "flicker",
    "first_to_last": "first-last",
    "similarity_slope": "slope/min",
    "chroma_noise_growth": "chroma +",
    "colorfulness_growth": "colour +",
    "histogram_overlap": "histogram",
}


@dataclass(frozen=True)
class BenchRequest:
    """What was asked for on the command line."""

    backbones: tuple[str, ...]
    methods: tuple[str, ...]
    horizons: tuple[float, ...]
    prompts: Path | None
    count: int | None
    seeds: int
    seed: int
    settings: tuple[str, ...]
    out: Path
    dry_run: bool
    backend: str
    device: str
    dtype: str
    as_json: bool
    engine: str = "local"


@dataclass(frozen=True)
class ScoreRequest:
    """What was asked for on the command line."""

    videos: tuple[Path, ...]
    group_by: str | None
    strict: bool
    backend: str
    device: str
    as_json: bool


def run(request: BenchRequest) -> None:
    """Make what is missing of a grid, score what is there, and say what comes of it."""
    grid = _grid(request)
    engine = parse_engine(request.engine)
    with console.working("loading"):
        back_end = find_back_end(request.backend, request.device)
        from llrag_cli.evaluation.report import write_report
        from llrag_cli.evaluation.results import compare
        from llrag_cli.evaluation.run import Bench

        bench = Bench(request.out, grid, settings=request.settings)
        cells, missing = list(grid.cells()), bench.missing()
    console.note(
        f"{counted(len(cells), 'video')} of {grid.seconds:g} s: {len(missing)} to make, {len(cells) - len(missing)} "
        f"here; in {request.out}"
    )
    if request.dry_run:
        _plan(request, bench, missing)
        return
    if engine is None:
        _make(request, bench, missing)
    else:
        _make_elsewhere(request, bench, [cell for cell in cells if not bench.is_scored(cell, back_end)], engine)
    scored = []
    with console.counting("scoring", total=len(cells), goes_on="the same command") as advance:
        for cell in cells:
            scored += bench.scores(cell, back_end)
            advance(1, f"{cell.backbone} {cell.method} {cell.number}")
    baseline = grid.methods[0]
    results = compare(scored, baseline=baseline, ranked=back_end.ranked)
    files = write_report(request.out, grid, results, scored, back_end=back_end, baseline=baseline)
    if request.as_json:
        console.result_json({"schema": 1, **back_end.about, "baseline": baseline, "results": results})
        return
    for result in results:
        _show(result, baseline=baseline)
    _say_unavailable(back_end)
    for file in files:
        console.result(str(file))


def _show(result: dict[str, Any], *, baseline: str) -> None:
    """The table and verdict of one backbone and horizon."""
    from llrag_cli.evaluation.results import FIGURES, verdict

    table = Table(
        title=f"{result['backbone']}, {result['seconds']:g} s, {counted(result['prompts'], 'prompt')}, "
        f"{result['videos']} videos of each method",
        title_justify="left",
        title_style="",
        box=None,
        pad_edge=False,
    )
    table.add_column("figure")
    for method in result["methods"]:
        table.add_column(method, justify="right")
        if "differences" in result["methods"][method]:
            table.add_column(f"minus {baseline}", justify="right")
            table.add_column("wins", justify="right")
    for figure in FIGURES:
        row = [figure.heading + (" (ranked)" if figure.name in result["ranked_by"] else "")]
        for entry in result["methods"].values():
            row.append(_cell(entry["means"].get(figure.name)))
            if "differences" in entry:
                found = entry["differences"].get(figure.name)
                row += ["-", "-"] if found is None else [_interval(found), f"{100 * found['wins']:.0f} %"]
        if any(cell != "-" for cell in row[1:]):
            table.add_row(*row)
    row = ["average rank"]
    for entry in result["methods"].values():
        row.append(_cell(entry["average_rank"]))
        row += ["", ""] if "differences" in entry else []
    table.add_row(*row)
    console.result_table(table)
    if result["not_ranked"]:
        console.result(f"not ranked: {result['not_ranked']}")
    console.result(verdict(result, baseline=baseline) + "\n")


def _make(request: BenchRequest, bench: Bench, missing: Sequence[Cell]) -> None:
    """Make what is missing, one after the other, in this process."""
    blocks = {cell: bench.blocks(cell) for cell in missing}
    with console.counting("making", total=sum(blocks.values()), goes_on="the same command") as advance:

        def told(cell: Cell, done: int) -> None:
            advance(1, f"{cell.backbone} {cell.method} {cell.number}, block {done}/{blocks[cell]}")

        for _ in bench.make(request.device, request.dtype, told):
            pass


def _make_elsewhere(request: BenchRequest, bench: Bench, cells: Sequence[Cell], engine: Engine) -> None:
    """Make and score videos as jobs of an engine, one for each."""
    from llrag_cli.evaluation.run import make_and_score
    from llrag_cli.runs.folder import RunFolder

    blocks = {cell: bench.blocks(cell) for cell in cells}
    jobs = [bench.job(cell, device=request.device, dtype=request.dtype, backend=request.backend) for cell in cells]
    outcomes = gather(
        engine,
        make_and_score,
        jobs,
        title=f"making and scoring, {request.engine}",
        total=sum(blocks.values()),
        made=lambda _: sum(min(blocks[cell], RunFolder(cell.folder(request.out)).blocks_committed()) for cell in cells),
    )
    require_all(outcomes, [str(cell.folder(request.out)) for cell in cells])


def _grid(request: BenchRequest) -> Grid:
    """The grid asked for; every wrong name is told before anything is loaded."""
    from llrag_cli.evaluation.grid import Grid, method_config, subset

    backbones, methods = request.backbones or ("tiny",), request.methods or ("native", "retrieval")
    for backbone in backbones:
        for method in methods:
            method_config(backbone, method, request.settings)
    horizons = tuple(sorted(set(request.horizons or (30.0,))))
    if not all(0 < horizon < float("inf") for horizon in horizons):
        raise UsageError("a horizon is not more than 0 seconds", hint="for example `--horizon 30 --horizon 60`")
    if request.seeds < 1 or (request.count is not None and request.count < 1):
        raise UsageError("a grid needs a prompt and a seed", hint="`--seeds` and `--count` are at least 1")
    if request.prompts is not None:
        prompts = subset(read_prompt_file(request.prompts), count=request.count, seed=request.seed)
    else:
        drawn = _example_prompts([*backbones], request.count or DEFAULT_PROMPTS, seed=request.seed)
        prompts = tuple(enumerate(drawn, start=1))
    seeds = tuple(range(request.seed, request.seed + request.seeds))
    return Grid(tuple(backbones), tuple(methods), horizons, prompts, seeds)


def _example_prompts(backbones: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Prompts that all backbones know as their own; without any, they must be given."""
    from llrag_cli.evaluation.grid import method_config
    from llrag_cli.models.family import family_of

    drawn = [family_of(method_config(backbone, "native")).example_prompts(count, seed=seed) for backbone in backbones]
    if drawn[0] is None or any(prompts != drawn[0] for prompts in drawn):
        raise UsageError(
            "the real backbones need prompts",
            hint="`--prompts FILE`; `llrag download prompts` fetches the 128 of MovieGenBench",
        )
    return drawn[0]


def _plan(request: BenchRequest, bench: Bench, missing: Sequence[Cell]) -> None:
    """What would be made, and about how long that takes and how much it fills, as far as finished videos tell."""
    rates: dict[str, list[tuple[float, float]]] = {}
    for cell in bench.grid.cells():
        found = bench.measured(cell)
        if found is not None:
            rates.setdefault(cell.backbone, []).append(found)
    rows = []
    for backbone in bench.grid.backbones:
        videos = sum(cell.backbone == backbone for cell in missing)
        known = rates.get(backbone)
        seconds = videos * bench.grid.seconds
        rows.append(
            {
                "backbone": backbone,
                "videos": videos,
                "seconds_of_video": seconds,
                "seconds_of_work": None if not known else round(seconds * sum(r[0] for r in known) / len(known), 1),
                "bytes": None if not known else round(seconds * sum(r[1] for r in known) / len(known)),
            }
        )
    if request.as_json:
        console.result_json(rows)
        return
    table = Table("backbone", "videos", "of video", "work", "disk", box=None, pad_edge=False)
    for row in rows:
        work, size = row["seconds_of_work"], row["bytes"]
        table.add_row(
            str(row["backbone"]),
            str(row["videos"]),
            f"{row['seconds_of_video']:.0f} s",
            "known after the first video" if work is None else f"{float(str(work)) / 60:.1f} min",
            "known after the first video" if size is None else human(int(str(size))),
        )
    console.result_table(table)


def _say_unavailable(back_end: BackEnd) -> None:
    """Which figures the back end cannot give, and why; those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for name, why in back_end.unavailable.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        console.result(f"not measured: {', '.join(names)}: {why}")


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def score_videos(request: ScoreRequest) -> None:
    """Score videos, one pass each, and print a table; ranks of groups, where asked for."""
    paths = _find(request.videos)
    if request.group_by not in (None, "folder"):
        raise UsageError(f"videos cannot be grouped by `{request.group_by}`", hint="`--group-by folder`")
    with console.working("loading"):
        back_end = find_back_end(request.backend, request.device)
        from llrag_cli.evaluation.metrics.score import score
        from llrag_cli.runs.video import open_video
    rows: list[tuple[Path, dict[str, Any], Scores]] = []
    with console.counting("scoring", total=len(paths)) as advance:
        for path in paths:
            try:
                video = open_video(path)
                about = {"fps": video.fps, "width": video.width, "height": video.height}
                rows.append((path, about, score(video.frames, fps=video.fps, back_end=back_end)))
            except LlragError as error:
                if request.strict:
                    raise
                console.warn(f"{error.problem}: left out")
            advance(1)
    if not rows:
        raise LlragError(
            f"none of {counted(len(paths), 'file')} can be read as a video", hint="give finished mp4 files"
        )
    grouped = _ranks(rows, back_end.ranked) if request.group_by else None
    if request.as_json:
        console.result_json(
            {
                "schema": 1,
                **back_end.about,
                "videos": [{"video": str(path), **about, **asdict(found)} for path, about, found in rows],
                "groups": grouped,
                "left_out": [str(path) for path in paths if path not in {row[0] for row in rows}],
            }
        )
        return
    table = Table(title=back_end.name, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("video", overflow="fold")
    shown = {name: heading for name, heading in COLUMNS.items() if name not in back_end.unavailable}
    for heading in ("s", *shown.values()):
        table.add_column(heading, justify="right")
    for path, about, found in rows:
        table.add_row(str(path), f"{found.frames / about['fps']:.1f}", *(_cell(getattr(found, name)) for name in shown))
    console.result_table(table)
    _say_unavailable(back_end)
    if grouped is not None:
        ranking = Table(box=None, pad_edge=False)
        ranking.add_column("group")
        for heading in ("videos", "average rank", *(COLUMNS[name] for name in back_end.ranked)):
            ranking.add_column(heading, justify="right")
        for name, found_ in grouped.items():
            cells = [_cell(found_["means"][dimension]) for dimension in back_end.ranked]
            ranking.add_row(name, str(found_["videos"]), f"{found_['average_rank']:.2f}", *cells)
        console.result("")
        console.result_table(ranking)


def _find(given: Sequence[Path]) -> list[Path]:
    """The videos given, and those in folders given, each once."""
    found: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(path.rglob("*.mp4"))
            if not inside:
                raise UsageError(f"there is no mp4 in `{path}`", hint="give videos, or folders of videos")
            found |= dict.fromkeys(inside)
        elif path.is_file():
            found[path] = None
        else:
            raise UsageError(f"there is no video `{path}`", hint="give videos, or folders of videos")
    if not found:
        raise UsageError("there is no video to score", hint="`llrag bench score VIDEO...`")
    return list(found)


def _ranks(rows: Sequence[tuple[Path, Mapping[str, Any], Scores]], ranked: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Means and average rank of the videos of each folder; only groups that can be compared are."""
    from llrag_cli.evaluation.metrics.score import mean_of
    from llrag_cli.evaluation.statistics import average_ranks

    groups: dict[str, list[tuple[Path, Mapping[str, Any], Scores]]] = {}
    for row in rows:
        groups.setdefault(str(row[0].parent), []).append(row)
    if len(groups) < 2:
        raise UsageError("all videos lie in one folder, so there is nothing to rank", hint="one folder for each method")
    shapes = {(about["width"], about["height"]) for _, about, _ in rows}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(shapes))
        raise UsageError(f"videos of different sizes are not ranked: {sizes}", hint="compare like with like")
    means = {
        name: {dimension: mean_of(getattr(found, dimension) for *_, found in group) for dimension in ranked}
        for name, group in groups.items()
    }
    try:
        averages = average_ranks(means)
    except ValueError as error:
        raise UsageError(f"these cannot be ranked: {error}", hint="videos need at least two clips of 2 s") from None
    return {
        name: {"videos": len(groups[name]), "average_rank": averages[name], "means": means[name]} for name in groups
    }


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}"
