"""The benchmark's answer as files: ``results.json``, ``results.csv`` and one page, ``report.html``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from llrag_cli.evaluation.grid import Cell, Grid
from llrag_cli.evaluation.inspect import latent_fps, latent_space, second_of, thumbnails
from llrag_cli.evaluation.metrics.clips import clip_length
from llrag_cli.evaluation.metrics.score import BackEnd
from llrag_cli.evaluation.results import FEWEST_PROMPTS, FIGURES, as_csv, verdict
from llrag_cli.evaluation.run import Scored
from llrag_cli.files.durable import replace_text
from llrag_cli.formatting import counted
from llrag_cli.runs.folder import RunFolder, read_run
from llrag_cli.runs.record import RunRecord

EMBEDDED_BYTES = 64 * 2**20  # of video that a page holds itself; more is linked
PLOTS = {
    "to_first": "Likeness of each clip to the first (cosine of features)",
    "chroma_noise": "Chroma noise (0 to 255)",
    "smoothness": "Motion smoothness",
}


def write_report(
    root: Path,
    grid: Grid,
    results: Sequence[Mapping[str, Any]],
    scored: Sequence[Scored],
    *,
    back_end: BackEnd,
    baseline: str,
) -> list[Path]:
    """Write the three files; returns their paths."""
    head = {"schema": 1, **back_end.about, "baseline": baseline}
    page = report(root, grid, results, scored, back_end=back_end, baseline=baseline)
    contents = {
        "results.json": json.dumps({**head, "results": results, "videos": _rows(root, scored)}, indent=1) + "\n",
        "results.csv": as_csv(scored),
        "report.html": page,
    }
    for name, content in contents.items():
        hint = "make room; videos and scores are kept, and the same command goes on"
        replace_text(root / name, content, hint=hint)
    return [root / name for name in contents]


def licences(back_end: BackEnd) -> str:
    """A sentence on what the page and its figures come from."""
    models = ", ".join(f"{model} ({licence})" for model, licence in back_end.licences.items())
    return (
        f"{models}, plotly.js (MIT); the other figures are llrag's own (Apache-2.0), after the formulae of VBench-Long."
    )


def _rows(root: Path, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    return [
        {
            "backbone": each.cell.backbone,
            "method": each.cell.method,
            "seconds": each.seconds,
            "prompt_number": each.cell.number,
            "prompt": each.cell.prompt,
            "seed": each.cell.seed,
            "folder": str(each.cell.folder(root).relative_to(root)),
            "figures": each.figures,
        }
        for each in scored
    ]


def report(
    root: Path,
    grid: Grid,
    results: Sequence[Mapping[str, Any]],
    scored: Sequence[Scored],
    *,
    back_end: BackEnd,
    baseline: str,
) -> str:
    """One page, complete in itself but for videos that are too large to hold."""
    from plotly.offline import get_plotlyjs

    longest = [each for each in scored if each.seconds == grid.seconds]
    folders = {each.cell: RunFolder(each.cell.folder(root)) for each in longest}
    embedded = sum(folder.video.stat().st_size for folder in folders.values()) <= EMBEDDED_BYTES
    records = {cell: read_run(folder)[0] for cell, folder in folders.items()}
    configs = {
        f"{cell.backbone} {cell.method}": {"config": record.config.model_dump(mode="json"), "versions": record.versions}
        for cell, record in records.items()
    }
    content = {
        "summary": f"{counted(len(grid.prompts), 'prompt')} x {counted(len(grid.seeds), 'seed')}, "
        f"{', '.join(grid.methods)}; {back_end.name}",
        "verdicts": [verdict(dict(result), baseline=baseline) for result in results],
        "baseline": baseline,
        "fewest": FEWEST_PROMPTS,
        "results": results,
        "figures": [{"name": f.name, "heading": f.heading, "better": f.better} for f in FIGURES],
        "plots": plots(longest, records),
        "videos": [_choice(root, group, folders, embedded=embedded) for group in _groups(longest)],
        "licences": licences(back_end),
        "unavailable": back_end.unavailable,
        "settings": configs,
    }
    text = json.dumps(content, allow_nan=False).replace("</", "<\\/")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return template.replace("/*PLOTLY*/", get_plotlyjs().replace("</script", "<\\/script")).replace("/*DATA*/", text)


def plots(longest: Sequence[Scored], records: Mapping[Cell, RunRecord]) -> list[dict[str, Any]]:
    """What is drawn over time: for each backbone and figure one series a method, mean and middle half."""
    drawn = []
    for backbone in dict.fromkeys(each.cell.backbone for each in longest):
        for name, title in PLOTS.items():
            series = []
            for method in dict.fromkeys(each.cell.method for each in longest):
                here = [each for each in longest if (each.cell.backbone, each.cell.method) == (backbone, method)]
                rows = [each.figures["per_clip"][name] for each in here]
                if not rows:
                    continue
                fps = records[here[0].cell].fps
                table = np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=float)
                if np.isnan(table).all(axis=0).any():
                    continue
                low, high = np.nanquantile(table, [0.25, 0.75], axis=0)
                series.append(
                    {
                        "method": method,
                        "x": [round((clip + 0.5) * clip_length(fps) / fps, 3) for clip in range(table.shape[1])],
                        "y": np.nanmean(table, axis=0).round(5).tolist(),
                        "low": low.round(5).tolist(),
                        "high": high.round(5).tolist(),
                    }
                )
            if series:
                drawn.append({"title": f"{backbone}: {title}", "series": series})
    return drawn


def _groups(longest: Sequence[Scored]) -> list[list[Scored]]:
    """Videos that differ in the method only."""
    groups: dict[tuple[str, int, int], list[Scored]] = {}
    for each in longest:
        groups.setdefault((each.cell.backbone, each.cell.number, each.cell.seed), []).append(each)
    return list(groups.values())


def _choice(
    root: Path, group: Sequence[Scored], folders: Mapping[Cell, RunFolder], *, embedded: bool
) -> dict[str, Any]:
    first = group[0]
    methods = []
    for each in group:
        folder = folders[each.cell]
        record, blocks = read_run(folder)
        fps = record.fps
        wanted = {frame for block in blocks for frame in block.retrieved}
        pictures = thumbnails(folder.video, wanted, side=64) if wanted else {}
        video = folder.video.read_bytes() if embedded else b""
        methods.append(
            {
                "method": each.cell.method,
                "source": f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
                if embedded
                else folder.video.relative_to(root).as_posix(),
                "figures": {figure.name: each.figures.get(figure.name) for figure in FIGURES},
                "thumbnails": {frame: _jpeg(picture) for frame, picture in pictures.items()},
                "recalls": [
                    {
                        "time": second_of(block.frame, fps),
                        "frames": [
                            {"frame": frame, "time": second_of(frame, fps), "cosine": cosine}
                            for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
                        ],
                    }
                    for block in blocks
                    if block.retrieved
                ],
            }
        )
    return {
        "title": f"{first.cell.backbone} {first.cell.number}, seed {first.cell.seed}: {first.cell.prompt}",
        "prompt": first.cell.prompt,
        "seconds": first.seconds,
        "methods": methods,
    }


def _jpeg(picture: Tensor) -> str:
    """A picture [h, w, 3] in [0, 1] as a data URL."""
    file = BytesIO()
    Image.fromarray((255 * picture).round().byte().numpy()).save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
