"""Retrieval accuracy of encoders as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from llrag_cli.evaluation.encoder.quality import Quality


def encoder_comparison(tables: Mapping[str, Mapping[str, Quality]], count: int) -> bytes:
    """A PNG, one row for each set of videos: similarity by lag of each kind of key, and its retrieval accuracy."""
    figure = Figure(figsize=(11, 3.9 * len(tables)), layout="constrained")
    for panel, (title, table) in zip(
        figure.subfigures(len(tables), 1, squeeze=False)[:, 0], tables.items(), strict=True
    ):
        panel.suptitle(title, fontsize=10)
        answered = [name for name, quality in table.items() if quality.recall is not None]
        lags, *more = panel.subplots(1, 2 if answered else 1, squeeze=False)[0]
        for name, quality in table.items():
            label = Path(name).stem
            lags.plot(list(quality.similarity), list(quality.similarity.values()), marker="o", ms=3, label=label)
        lags.set(title="Cosine of keys by distance", xlabel="latent frames apart", ylim=(None, 1.02))
        lags.set_xscale("log", base=2)
        lags.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
        for axes in more:
            positions = range(len(answered))
            guarded = [table[name].recall or 0.0 for name in answered]
            free = [table[name].unguarded_recall or 0.0 for name in answered]
            axes.bar(
                [position - 0.2 for position in positions],
                guarded,
                0.4,
                label="candidates of a rollout",
                color="#3b6fd4",
            )
            axes.bar([position + 0.2 for position in positions], free, 0.4, label="all past frames", color="#d4583b")
            axes.set_xticks(list(positions), [Path(name).stem for name in answered], rotation=15, ha="right")
            axes.set(title=f"recall@{count}: same object, not adjacent", ylim=(0, 1))
            axes.legend(frameon=False, fontsize=8)
        for axes in (lags, *more):
            axes.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
