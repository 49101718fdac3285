"""The report of a training: curves as PNG, and a page with results and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from llrag_cli.files.html import data_url, render
from llrag_cli.training.encoder.config import EncoderTraining
from llrag_cli.training.encoder.folder import TrainingFolder

COLORS = {"total": "#222222", "recon": "#3b6fd4", "delta": "#d4583b", "smooth": "#3ba272"}
NAMES = {"total": "total", "recon": "reconstruction", "delta": "temporal delta", "smooth": "smoothness"}


def write_report(folder: TrainingFolder, training: EncoderTraining, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw ``curves.png`` and write ``summary.html`` from the records of the epochs so far."""
    picture = curves(training, records)
    with folder.replacing(folder.curves) as path:
        path.write_bytes(picture)
    page = summary(str(folder.out), training, records, picture)
    with folder.replacing(folder.summary) as path:
        path.write_text(page, encoding="utf-8")


def curves(training: EncoderTraining, records: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: the loss by part, neighbours' similarity over the epochs, and similarity by lag at the last evaluation."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, neighbours, lags = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in records]
    for part, color in COLORS.items():
        losses.plot(epochs, [record["train"][part] for record in records], color=color, lw=1, alpha=0.45)
        losses.plot(epochs, [record["validation"][part] for record in records], color=color, lw=1.6, label=NAMES[part])
    losses.set(title="Loss (pale: training, full: validation)", xlabel="epoch", ylim=(0, None))
    losses.legend(frameon=False)
    evaluations = [record for record in records if "retrieval" in record]
    if evaluations:
        for lag in ("1", "3", "8"):
            points = [(record["epoch"], _by_lag(record)[lag]) for record in evaluations if lag in _by_lag(record)]
            neighbours.plot(
                *zip(*points, strict=True), marker="o", ms=3, label=f"{lag} frame{'s' * (lag != '1')} apart"
            )
        neighbours.legend(frameon=False)
        last = _by_lag(evaluations[-1])
        lags.plot([int(lag) for lag in last], list(last.values()), marker="o", ms=3, color="#222222")
        lags.set_xscale("log", base=2)
    for axes in (neighbours, lags):
        axes.axhline(training.delta_margin, color="#888888", lw=0.8, ls="--")
        axes.set(ylim=(min(-0.05, axes.get_ylim()[0]), 1.02))
    neighbours.set(title="Cosine of held-out keys (dashed: margin)", xlabel="epoch")
    lags.set(title="Cosine by distance, last evaluation", xlabel="latent frames apart")
    for axes in (losses, neighbours, lags):
        axes.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _by_lag(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(lag): value for lag, value in record["retrieval"]["similarity"].items()}


def summary(name: str, training: EncoderTraining, records: Sequence[Mapping[str, Any]], picture: bytes) -> str:
    """One HTML page, complete in itself."""
    last, best_epoch = records[-1], records[-1]["best_epoch"]
    best = records[best_epoch - 1]
    retrieval = next((record["retrieval"] for record in reversed(records) if "retrieval" in record), None)
    rows = [
        ("epochs", f"{last['epoch']} of {training.epochs}"),
        ("best epoch", f"{best_epoch}, validation loss {best['validation']['total']:.4f}"),
        *((NAMES[part], f"{best['validation'][part]:.4f}") for part in ("recon", "delta", "smooth")),
        ("time", f"{sum(record['seconds'] for record in records):.0f} s"),
    ]
    if retrieval is not None:
        rows += [
            ("effective rank of keys", f"{retrieval['effective_rank']:.1f} of {training.latent_dim}"),
            ("retrieved within 8 frames of the guard", f"{100 * retrieval['near_guard']:.0f} %"),
        ]
    settings = [(key, str(value)) for key, value in training.model_dump(mode="json").items()]
    return render("training.html", name=name, rows=rows, settings=settings, picture=data_url(picture, "image/png"))
