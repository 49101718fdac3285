"""``llrag bench score``: the metrics of any video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Backend, Json

if TYPE_CHECKING:
    from llrag_cli.evaluation.metrics.inputs import Backend as Models
    from llrag_cli.evaluation.metrics.score import Scores

SCHEMA = 2


@dataclass(frozen=True)
class ScoredFile:
    """A video file and its scores."""

    path: Path
    fps: float
    width: int
    height: int
    scores: Scores


def bench_score(
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos")],
    rank_folders: Annotated[
        bool, typer.Option("--rank-folders", help="Rank the folders of the videos against each other")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a file that is not a video instead of skipping it")
    ] = False,
    backend: Backend = "offline",
    device: Annotated[
        str,
        typer.Option(help="Device of the official models: cpu, cuda or cuda:1; auto is the first GPU, or else the CPU"),
    ] = "auto",
    as_json: Json = False,
) -> None:
    r"""Score any video: consistency, motion and drift, in constant memory.

    Needs the extra `metrics`: pip install 'llrag\[metrics]'.
    """
    from llrag_cli.cli import console
    from llrag_cli.evaluation.metrics.backends import find_backend

    paths = _find(videos)
    if rank_folders:
        _require_folders(paths)
    with console.working("loading"):
        models = find_backend(backend, device)
        from llrag_cli.evaluation.metrics.registry import about
    scored = _score(paths, models, strict=strict)
    ranks = _rank_folders(scored, models) if rank_folders else None
    if as_json:
        left_out = [str(path) for path in paths if path not in {file.path for file in scored}]
        rows = [
            {"video": str(file.path), "fps": file.fps, "width": file.width, "height": file.height} | asdict(file.scores)
            for file in scored
        ]
        content = {"schema": SCHEMA, **about(models), "videos": rows, "folders": ranks, "left_out": left_out}
        console.result_json(content)
        return
    _show(scored, models)
    if ranks is not None:
        _show_ranks(ranks, models)
    console.result_not_measured(about(models))


def _find(given: Sequence[Path]) -> list[Path]:
    """The videos given, and those in the folders given, each once."""
    from llrag_cli.errors import UsageError

    paths: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            inside = sorted(path.rglob("*.mp4"))
            if not inside:
                raise UsageError(f"`{path}` contains no mp4 file", hint="give videos, or folders of videos")
            paths |= dict.fromkeys(inside)
        elif path.is_file():
            paths[path] = None
        else:
            raise UsageError(f"no such file: `{path}`", hint="give videos, or folders of videos")
    return list(paths)


def _require_folders(paths: Sequence[Path]) -> None:
    """Raise an error unless videos are in more than one folder."""
    from llrag_cli.errors import UsageError

    if len({path.parent for path in paths}) < 2:
        raise UsageError("all videos are in one folder: nothing to rank", hint="use one folder for each memory")


def _score(paths: Sequence[Path], models: Models, *, strict: bool) -> list[ScoredFile]:
    """Score every file that is a video."""
    from llrag_cli.cli import console
    from llrag_cli.errors import LlragError
    from llrag_cli.evaluation.metrics.score import score
    from llrag_cli.formatting import counted
    from llrag_cli.runs.video import open_video

    scored = []
    with console.counting("scoring", total=len(paths)) as advance:
        for path in paths:
            try:
                video = open_video(path)
                scores = score(video.frames, fps=video.fps, backend=models)
                scored.append(ScoredFile(path, video.fps, video.width, video.height, scores))
            except LlragError as error:
                if strict:
                    raise
                console.warn(f"{error.problem}: skipped")
            advance(1)
    if not scored:
        raise LlragError(
            f"none of {counted(len(paths), 'file')} can be read as a video", hint="give finished mp4 files"
        )
    return scored


def _rank_folders(scored: Sequence[ScoredFile], models: Models) -> dict[str, dict[str, Any]]:
    """Means, average rank and drift rank of the videos of each folder; all must be of one size."""
    from llrag_cli.errors import UsageError
    from llrag_cli.evaluation.metrics.registry import drift_metrics, mean_of, ranked_metrics
    from llrag_cli.evaluation.results import rank

    folders: dict[str, list[ScoredFile]] = {}
    for file in scored:
        folders.setdefault(str(file.path.parent), []).append(file)
    _require_folders([file.path for file in scored])
    shapes = {(file.width, file.height) for file in scored}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(shapes))
        raise UsageError(f"videos of different sizes cannot be ranked: {sizes}", hint="rank videos of one size")
    ranked, drift = ranked_metrics(models.kind), drift_metrics()
    means = {
        name: {metric: mean_of(file.scores.metrics[metric] for file in files) for metric in (*ranked, *drift)}
        for name, files in folders.items()
    }
    try:
        ranks, drift_ranks = rank(means, ranked), rank(means, drift)
    except ValueError as error:
        raise UsageError(f"the folders cannot be ranked: {error}", hint="use videos longer than 2 s") from None
    return {
        name: {
            "videos": len(files),
            "average_rank": ranks[name],
            "drift_rank": drift_ranks[name],
            "means": means[name],
        }
        for name, files in folders.items()
    }


def _show(scored: Sequence[ScoredFile], models: Models) -> None:
    """One line a video."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.evaluation.metrics.registry import metrics_of

    metrics = metrics_of(models, sprites=False)
    table = Table(title=models.name, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("video", overflow="fold")
    for heading in ("s", *(metric.short for metric in metrics)):
        table.add_column(heading, justify="right")
    for file in scored:
        values = [console.number(file.scores.metrics[metric.name]) for metric in metrics]
        table.add_row(str(file.path), f"{file.scores.frames / file.fps:.1f}", *values)
    console.result_table(table)


def _show_ranks(ranks: Mapping[str, Mapping[str, Any]], models: Models) -> None:
    """One line a folder."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.evaluation.metrics.registry import METRICS, drift_metrics, ranked_metrics

    shown = [*ranked_metrics(models.kind), *drift_metrics()]
    table = Table(box=None, pad_edge=False)
    table.add_column("folder")
    for heading in ("videos", "average rank", "drift rank", *(METRICS[name].short for name in shown)):
        table.add_column(heading, justify="right")
    for folder, entry in ranks.items():
        values = [console.number(entry["means"][name]) for name in shown]
        places = (f"{entry[kind]:.2f}" for kind in ("average_rank", "drift_rank"))
        table.add_row(folder, str(entry["videos"]), *places, *values)
    console.result("")
    console.result_table(table)
