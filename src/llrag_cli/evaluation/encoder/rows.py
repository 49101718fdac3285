"""Retrieval accuracy as CSV, one line for each set of videos, kind of keys and video: enough for every table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from llrag_cli.evaluation.encoder.quality import Quality, VideoQuality

LAGS = (1, 8)  # frames apart, of the cosines that tables show
ACCURACIES = ("recall", "unguarded_recall", "reciprocal_rank")
COLUMNS = (
    "set",
    "keys",
    "video",  # from 1
    "blocks",
    "near_guard",
    "queries",
    *ACCURACIES,
    *(f"similarity_{lag}" for lag in LAGS),
    "effective_rank",  # of the keys of all videos of the set
)


def as_csv(tables: Mapping[str, Mapping[str, Quality]]) -> str:
    """All videos of all tables, by set of videos and kind of keys."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for title, table in tables.items():
        for name, row in table.items():
            for number, video in enumerate(row.videos, start=1):
                writer.writerow([title, name, number, *_cells(video), f"{row.effective_rank:.4f}"])
    return file.getvalue()


def _cells(video: VideoQuality) -> list[str]:
    accuracies = [getattr(video, name) for name in ACCURACIES]
    cells = [str(video.blocks), f"{video.near_guard:.6f}", str(video.queries)]
    cells += ["" if value is None else f"{value:.6f}" for value in accuracies]
    return cells + [f"{video.similarity[lag]:.6f}" if lag in video.similarity else "" for lag in LAGS]
