"""``llrag bench``: figures of videos, ours or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llrag_cli import console
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.places import counted

if TYPE_CHECKING:
    from llrag_cli.metrics.score import Scores

COLUMNS = {  # field of Scores, heading
    "consistency_within": "within",
    "consistency_across": "across",
    "motion_smoothness": "smooth",
    "dynamic_degree": "dynamic",
    "temporal_flickering": "flicker",
    "first_to_last": "first-last",
    "similarity_slope": "slope/min",
    "chroma_noise_growth": "chroma +",
    "colorfulness_growth": "colour +",
    "histogram_overlap": "histogram",
}
RANKED = ("consistency_within", "consistency_across", "motion_smoothness", "temporal_flickering")
UNAVAILABLE = {  # VBench-Long's dimensions that no package with weights measures
    "subject_consistency": "needs DINO and DINOv2; `consistency_*` compares whole frames by EfficientNet-lite0 instead",
    "background_consistency": "needs CLIP and DreamSim",
    "aesthetic_quality": "needs CLIP and the LAION head",
    "imaging_quality": "needs MUSIQ",
}


@dataclass(frozen=True)
class ScoreRequest:
    """What was asked for on the command line."""

    videos: tuple[Path, ...]
    group_by: str | None
    strict: bool
    as_json: bool


def score_videos(request: ScoreRequest) -> None:
    """Score videos, one pass each, and print a table; ranks of groups, where asked for."""
    paths = _find(request.videos)
    if request.group_by not in (None, "folder"):
        raise UsageError(f"videos cannot be grouped by `{request.group_by}`", hint="`--group-by folder`")
    with console.working("loading"):
        try:
            from llrag_cli.metrics.score import offline, score

            back_end = offline()
        except ImportError as error:
            raise LlragError(
                f"what metrics need is not installed: no module `{error.name}`", hint="`pip install 'llrag[metrics]'`"
            ) from None
        from llrag_cli.files.video import open_video
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
    grouped = _ranks(rows) if request.group_by else None
    if request.as_json:
        console.result_json(
            {
                "schema": 1,
                "back_end": back_end.name,
                "videos": [{"video": str(path), **about, **asdict(found)} for path, about, found in rows],
                "unavailable": UNAVAILABLE,
                "groups": grouped,
                "left_out": [str(path) for path in paths if path not in {row[0] for row in rows}],
            }
        )
        return
    table = Table(title=back_end.name, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("video", overflow="fold")
    for heading in ("s", *COLUMNS.values()):
        table.add_column(heading, justify="right")
    for path, about, found in rows:
        table.add_row(
            str(path), f"{found.frames / about['fps']:.1f}", *(_cell(getattr(found, name)) for name in COLUMNS)
        )
    console.result_table(table)
    if grouped is not None:
        ranking = Table(box=None, pad_edge=False)
        ranking.add_column("group")
        for heading in ("videos", "average rank", *(COLUMNS[name] for name in RANKED)):
            ranking.add_column(heading, justify="right")
        for name, found_ in grouped.items():
            cells = [_cell(found_["means"][dimension]) for dimension in RANKED]
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


def _ranks(rows: Sequence[tuple[Path, Mapping[str, Any], Scores]]) -> dict[str, dict[str, Any]]:
    """Means and average rank of the videos of each folder; only groups that can be compared are."""
    from llrag_cli.metrics.ranks import average_ranks
    from llrag_cli.metrics.score import mean_of

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
        name: {dimension: mean_of(getattr(found, dimension) for *_, found in group) for dimension in RANKED}
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
