"""Takes of one scene side by side: a contact sheet, and how far each drifts within its shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llrag_cli.errors import LlragError
from llrag_cli.evaluation.metrics.inputs import Features
from llrag_cli.evaluation.sheet import (
    Layout,
    Score,
    SheetRow,
    contact_sheet,
    sheet_columns,
    sheet_page,
    shot_pictures,
)
from llrag_cli.files.durable import replace_bytes, replace_text
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import read_frames
from llrag_cli.scenes.timeline import Timeline

LOOKS = 8  # frames of a shot that are compared with its first one


@dataclass(frozen=True)
class Sheet:
    """The files of a contact sheet, and the drift of each take, if it was measured."""

    picture: Path
    page: Path
    drift: tuple[float, ...] | None


def shot_drift(video: Path, timeline: Timeline, features: Features) -> float:
    """1 less the cosine similarity of frames with the first frame of their shot: 0 is no change; the mean over shots.

    Of each shot 8 frames at equal distances are compared, so that what cuts change does not count.
    """
    wanted: dict[int, int] = {}  # frame to shot
    for number, shot in enumerate(timeline.shots):
        frames = timeline.extent(shot).video_frames
        picked = {frames[round(step * (len(frames) - 1) / LOOKS)] for step in range(LOOKS + 1)}
        wanted |= dict.fromkeys(picked, number)
    shots: list[list[torch.Tensor]] = [[] for _ in timeline.shots]
    for number, frame in enumerate(read_frames(video)):
        if number in wanted:
            shots[wanted[number]].append(features(frame[None])[0].flatten())
    drifts = [
        1 - torch.nn.functional.cosine_similarity(first[None], torch.stack(later)).mean()
        for first, *later in (shot for shot in shots if len(shot) > 1)
    ]
    return max(0.0, float(torch.stack(drifts).mean())) if drifts else 0.0  # not below 0 by rounding


def offline_features() -> Features | None:
    """What frames are compared by; None without the extra `metrics`."""
    from llrag_cli.evaluation.metrics.backends import find_backend

    try:
        return find_backend("offline", "cpu").features
    except LlragError:
        return None


def write_sheet(
    root: Path,
    runs: Sequence[tuple[RunFolder, RunRecord]],
    *,
    title: str,
    layout: Layout = "takes",
    features: Features | None = None,
) -> Sheet:
    """Write ``takes.png`` and ``takes.html``, or those of a storyboard, for runs of one scene; the first has the shots.

    With ``features``, takes are ranked by drift.
    """
    timeline = runs[0][1].timeline
    drift = None if features is None else tuple(shot_drift(run.video, timeline, features) for run, _ in runs)
    ranks = [] if drift is None else [1 + sum(other < value for other in drift) for value in drift]
    rows = []
    for number, (folder, record) in enumerate(runs):
        upscale = record.config.video.upscale
        score = None if drift is None else Score("drift", drift[number], ranks[number] if len(runs) > 1 else None)
        rows.append(
            SheetRow(
                label=f"take {number + 1} · seed {record.seed}" if layout == "takes" else f"seed {record.seed}",
                pictures=shot_pictures(folder.video, timeline, upscale=upscale, layout=layout),
                folder=folder.path.name,
                score=score,
                video=folder.video,
                upscale=upscale,
            )
        )
    columns = sheet_columns(timeline)
    stem = "takes" if layout == "takes" else "storyboard"
    sheet = Sheet(root / f"{stem}.png", root / f"{stem}.html", drift)
    replace_bytes(sheet.picture, contact_sheet(rows, columns, title=title, layout=layout))
    replace_text(sheet.page, sheet_page(rows, columns, title=title, root=root, layout=layout))
    return sheet
