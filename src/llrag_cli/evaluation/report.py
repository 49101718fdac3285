"""The results of a benchmark as files: ``results.json``, ``results.csv`` and one page, ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llrag_cli.evaluation.charts import Chart, Curve, line_chart
from llrag_cli.evaluation.grid import Case, Grid, memory_title
from llrag_cli.evaluation.metrics.clips import clip_length
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.registry import METRICS, NOT_MEASURED, Series, about, unavailable
from llrag_cli.evaluation.rendition import renditions
from llrag_cli.evaluation.results import (
    MIN_PROMPTS,
    UNCORRECTED,
    as_csv,
    is_significant,
    stands_correction,
    verdict,
)
from llrag_cli.evaluation.run import Scored
from llrag_cli.evaluation.thumbnails import thumbnail_url, thumbnails
from llrag_cli.files.durable import replace_text
from llrag_cli.files.html import data_url, render
from llrag_cli.formatting import counted
from llrag_cli.runs.folder import BlockMemory, RunFolder, read_run
from llrag_cli.runs.record import RunRecord

SCHEMA = 2  # of results.json
EMBEDDED_BYTES = 64 * 2**20  # of video renditions that a page embeds; beyond it, videos are linked
THUMBNAIL = 64  # pixels, the longer side
RANKS = {"average_rank": "average rank (ranked metrics)", "drift_rank": "drift rank (drift metrics)"}


@dataclass(frozen=True)
class Run:
    """What the report needs of one run folder."""

    video: Path
    record: RunRecord
    blocks: tuple[BlockMemory, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What the video was made with."""
        return {"config": self.record.config.model_dump(mode="json"), "versions": self.record.versions}


def read(folder: RunFolder) -> Run:
    """Read a finished run folder."""
    return Run(folder.video, *read_run(folder))


def write_report(
    root: Path,
    grid: Grid,
    results: Sequence[Mapping[str, Any]],
    scored: Sequence[Scored],
    *,
    backend: Backend,
    published: str | None = None,
    limit: int | None = None,
) -> list[Path]:
    """Write the three files; returns their paths. The last two arguments are those of ``report``."""
    contents = {
        "results.json": json.dumps(results_json(root, grid, results, scored, backend=backend), indent=1) + "\n",
        "results.csv": as_csv(scored),
        "report.html": report(root, grid, results, scored, backend=backend, published=published, limit=limit),
    }
    for name, content in contents.items():
        hint = "free some disk space and run again; finished videos and scores are kept"
        replace_text(root / name, content, hint=hint)
    return [root / name for name in contents]


def results_json(
    root: Path, grid: Grid, results: Sequence[Mapping[str, Any]], scored: Sequence[Scored], *, backend: Backend
) -> dict[str, Any]:
    """The content of ``results.json``."""
    metrics = {
        metric.name: {"heading": metric.heading, "unit": metric.unit, "better": metric.better}
        for metric in METRICS.values()
    }
    videos = [
        {
            "backbone": video.case.backbone,
            "memory": video.case.memory,
            "seconds": video.seconds,
            "prompt_number": video.case.number,
            "prompt": video.case.prompt,
            "seed": video.case.seed,
            "folder": str(video.case.folder(root).relative_to(root)),
            **asdict(video.scores),
        }
        for video in scored
    ]
    return {
        "schema": SCHEMA,
        **about(backend),
        "metrics": metrics,
        "baseline": grid.baseline,
        "variants": {memory.name: list(memory.settings) for memory in grid.memories if memory.settings},
        "results": list(results),
        "videos": videos,
    }


def report(
    root: Path,
    grid: Grid,
    results: Sequence[Mapping[str, Any]],
    scored: Sequence[Scored],
    *,
    backend: Backend,
    published: str | None = None,
    limit: int | None = None,
) -> str:
    """One page, complete in itself unless the renditions of the videos are too large to embed.

    ``published`` is a paragraph on results from elsewhere. With ``limit`` the page links no video and is not
    made larger than so many bytes by videos: it plays the first prompts of each backbone, as many as fit.
    """
    longest = [video for video in scored if video.seconds == grid.seconds]
    runs = {video.case: read(RunFolder(video.case.folder(root))) for video in longest}
    settings = {f"{case.backbone} {case.memory}": run.settings for case, run in runs.items()}

    def page(videos: Sequence[dict[str, Any]], *, linked: bool = False) -> str:
        return render(
            "report.html",
            question="Does this memory help?" if len(grid.memories) == 2 else "Do these memories help?",
            summary=f"{counted(len(grid.prompts), 'prompt')} x {counted(len(grid.seeds), 'seed')}; memories: "
            f"{', '.join(memory_title(memory.name) for memory in grid.memories)}; {backend.name}",
            variants={memory.name: " ".join(memory.settings) for memory in grid.memories if memory.settings},
            verdicts=[verdict(result, baseline=grid.baseline) for result in results],
            overview=overview(results),
            published=published,
            tables=[table(result, baseline=grid.baseline) for result in results],
            charts=charts(longest, runs),
            licences=licences(backend),
            unavailable=unavailable(backend),
            not_measured=NOT_MEASURED,
            settings=json.dumps(settings, indent=1),
            linked=linked,
            shown=len(videos),
            left_out=len(groups) - len(videos),
            data={
                "metrics": [{"name": metric.name, "heading": metric.heading} for metric in METRICS.values()],
                "videos": videos,
            },
        )

    groups = _groups(longest)
    if limit is None:
        copies = renditions([_to_copy(run) for run in runs.values()], limit=EMBEDDED_BYTES)
        sources = {
            case: run.video.relative_to(root).as_posix() if copies is None else data_url(copies[index], "video/mp4")
            for index, (case, run) in enumerate(runs.items())
        }
        return page([_choice(group, runs, sources) for group in groups], linked=copies is None)
    beside = len(page([{}]).encode())  # everything but the videos
    return page(_fitting(groups, runs, room=limit - beside))


def _to_copy(run: Run) -> tuple[Path, int]:
    """What ``renditions`` needs of a run."""
    return run.video, run.record.config.video.upscale


def _fitting(groups: Sequence[Sequence[Scored]], runs: Mapping[Case, Run], *, room: int) -> list[dict[str, Any]]:
    """The videos to be played that fit into ``room`` bytes of a page, the first prompt of each backbone first."""
    choices: list[dict[str, Any]] = []
    for group in sorted(groups, key=lambda group: (group[0].case.number, group[0].case.seed)):
        copies = renditions([_to_copy(runs[video.case]) for video in group], limit=max(0, room))
        if copies is None:
            break
        urls = (data_url(copy, "video/mp4") for copy in copies)
        choice = _choice(group, runs, dict(zip((video.case for video in group), urls, strict=True)))
        room -= len(json.dumps(choice))
        if room < 0:
            break
        choices.append(choice)
    return choices


def licences(backend: Backend) -> str:
    """A sentence on the models behind the metrics."""
    models = ", ".join(f"{model} ({licence})" for model, licence in backend.licences.items())
    return f"{models}; all else is llrag's own code (Apache-2.0), after the formulae of VBench-Long."


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a number, below it the difference to the baseline, and whether that is good or bad."""

    text: str
    tone: str = ""
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One metric in a table."""

    heading: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """The table of one backbone and horizon."""

    title: str
    columns: list[str]
    rows: list[Row]
    not_ranked: str | None = None
    corner: str = "metric"


def table(result: Mapping[str, Any], *, baseline: str) -> Table:
    """One entry of ``results.compare`` as a table of metrics by memories."""
    memories: Mapping[str, Mapping[str, Any]] = result["memories"]
    columns = [
        memory_title(memory) + (f", minus {baseline}" if "differences" in entry else "")
        for memory, entry in memories.items()
    ]
    rows = []
    for name, metric in METRICS.items():
        if all(entry["means"].get(name) is None for entry in memories.values()):
            continue
        cells = [
            _compared(
                entry["means"].get(name),
                entry.get("differences", {}).get(name),
                better=metric.better,
                prompts=result["prompts"],
            )
            for entry in memories.values()
        ]
        arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[metric.better]
        ranked = " (ranked)" if name in result["ranked_by"] else " (drift)" if name in result["drift_ranked_by"] else ""
        rows.append(Row(f"{metric.heading}{arrow}{ranked}", cells))
    rows += [
        Row(heading, [Cell(rank_text(entry[name])) for entry in memories.values()]) for name, heading in RANKS.items()
    ]
    return Table(f"{result['backbone']}, {result['seconds']:g} s", columns, rows, result["not_ranked"])


def markdown(table: Table) -> str:
    """A table in Markdown, under its title."""
    rows = [[table.corner, *table.columns], ["---"] * (1 + len(table.columns))]
    rows += [[row.heading, *(", ".join((cell.text, *cell.below)) for cell in row.cells)] for row in table.rows]
    lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    return "\n".join([f"**{table.title}**", "", *lines])


def overview(results: Sequence[Mapping[str, Any]]) -> Table | None:
    """Every backbone, memory and horizon in one table, or None if there is only one backbone and horizon.

    Ranks are within a backbone and horizon, 1 for the best, so that small numbers are good.
    """
    if len(results) < 2:
        return None
    horizons = sorted({result["seconds"] for result in results})
    sprites = any(_objects(entry) is not None for result in results for entry in result["memories"].values())
    figures = ["average rank", "drift rank", *(["objects kept"] if sprites else [])]
    by_key = {(result["backbone"], result["seconds"]): result for result in results}
    rows = []
    for backbone in dict.fromkeys(result["backbone"] for result in results):
        memories = dict.fromkeys(
            name for seconds in horizons for name in by_key.get((backbone, seconds), {"memories": {}})["memories"]
        )
        for memory in memories:
            cells: list[Cell] = []
            for seconds in horizons:
                result = by_key.get((backbone, seconds), {})
                entry = result.get("memories", {}).get(memory)
                cells += [Cell(rank_text(entry and entry[name])) for name in RANKS]
                cells += [_objects_cell(entry, prompts=result.get("prompts", 0))] if sprites else []
            rows.append(Row(f"{backbone}, {memory_title(memory)}", cells))
    columns = [f"{figure}, {seconds:g}\u00a0s" for seconds in horizons for figure in figures]
    return Table("All at a glance", columns, rows, corner="backbone, memory")


def _objects(entry: Mapping[str, Any] | None) -> float | None:
    return None if entry is None else entry["means"].get("sprite_identity")


def _objects_cell(entry: Mapping[str, Any] | None, *, prompts: int) -> Cell:
    """The share of objects that are kept, with the difference to the baseline."""
    gap = None if entry is None else entry.get("differences", {}).get("sprite_identity")
    return _compared(_objects(entry), gap, better="higher", prompts=prompts)


def rank_text(rank: float | None) -> str:
    """An average rank, 1 for the best."""
    return "–" if rank is None else f"{rank:.2f}"


def _compared(value: float | None, gap: Mapping[str, float] | None, *, better: str, prompts: int) -> Cell:
    """A mean, with its difference to the baseline."""
    if gap is None:
        return Cell(_number(value))
    tone = mark = ""
    if better != "neither" and prompts >= MIN_PROMPTS and is_significant(gap):
        tone = "good" if (gap["mean"] > 0) == (better == "higher") else "bad"
        mark = "" if stands_correction(gap) else UNCORRECTED
    won = "" if better == "neither" else f", {100 * gap['wins']:.0f} % won"
    difference = f"{_signed(gap['mean'])}{mark}{won}"
    return Cell(_number(value), tone, (difference, f"[{_signed(gap['low'])}, {_signed(gap['high'])}]"))


def _number(value: float | None) -> str:
    return "–" if value is None else (f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}").replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def charts(longest: Sequence[Scored], runs: Mapping[Case, Run]) -> list[Chart]:
    """For each backbone and drawn series a chart over time, with one curve a memory: mean and middle half."""
    drawn = {m.series.name: m.series for m in METRICS.values() if m.series is not None and m.series.plot}
    figures = []
    for backbone in dict.fromkeys(video.case.backbone for video in longest):
        group = [video for video in longest if video.case.backbone == backbone]
        for series in drawn.values():
            memories = dict.fromkeys(video.case.memory for video in group)
            curves = [_curve([v for v in group if v.case.memory == memory], series, runs) for memory in memories]
            known = [curve for curve in curves if curve is not None]
            if known:
                figures.append(line_chart(f"{backbone}: {series.plot}", known))
    return figures


def _curve(group: Sequence[Scored], series: Series, runs: Mapping[Case, Run]) -> Curve | None:
    """A series of the videos of one memory; None where the backend or a clip has no number, or a video more clips."""
    rows = [video.scores.per_clip.get(series.name, []) for video in group]
    if len({len(row) for row in rows}) > 1:
        return None
    values = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)
    if values.size == 0 or np.isnan(values).all(axis=0).any():
        return None
    fps = runs[group[0].case].record.fps
    low, high = np.nanquantile(values, [0.25, 0.75], axis=0)
    return Curve(
        name=memory_title(group[0].case.memory),
        x=[round((clip + 0.5) * clip_length(fps) / fps, 3) for clip in range(values.shape[1])],
        y=np.nanmean(values, axis=0).tolist(),
        low=low.tolist(),
        high=high.tolist(),
    )


def _groups(longest: Sequence[Scored]) -> list[list[Scored]]:
    """Videos that differ in the memory only."""
    groups: dict[tuple[str, int, int], list[Scored]] = {}
    for video in longest:
        groups.setdefault((video.case.backbone, video.case.number, video.case.seed), []).append(video)
    return list(groups.values())


def _choice(group: Sequence[Scored], runs: Mapping[Case, Run], sources: Mapping[Case, str]) -> dict[str, Any]:
    """Videos to be played side by side."""
    case = group[0].case
    return {
        "title": f"{case.backbone} {case.number}, seed {case.seed}: {case.prompt}",
        "prompt": case.prompt,
        "seconds": group[0].seconds,
        "memories": [_player(video, runs[video.case], sources[video.case]) for video in group],
    }


def _player(video: Scored, run: Run, source: str) -> dict[str, Any]:
    """One video, its metrics, and what each block retrieved."""
    frames = {frame for block in run.blocks for frame in block.retrieved}
    config = run.record.config
    pictures = thumbnails(run.video, frames, config, side=THUMBNAIL) if frames else {}
    return {
        "title": memory_title(video.case.memory),
        "source": source,
        "metrics": video.scores.metrics,
        "thumbnails": {frame: thumbnail_url(picture) for frame, picture in pictures.items()},
        "blocks": [
            {
                "time": config.second_of(block.frame),
                "frames": [
                    {"frame": frame, "time": config.second_of(frame), "cosine": round(cosine, 4)}
                    for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
                ],
            }
            for block in run.blocks
            if block.retrieved
        ],
    }
