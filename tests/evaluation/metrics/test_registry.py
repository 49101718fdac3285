"""A metric is one entry of the registry: every output follows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from conftest import Llrag
from llrag_cli.evaluation import report
from llrag_cli.evaluation.grid import Case, Grid, strategy_variant
from llrag_cli.evaluation.metrics.inputs import Backend, Video
from llrag_cli.evaluation.metrics.registry import (
    METRICS,
    Metric,
    Series,
    mean_of,
    metrics_of,
    of_series,
    ranked_metrics,
    unavailable,
)
from llrag_cli.evaluation.metrics.score import score
from llrag_cli.evaluation.report import Run, write_report
from llrag_cli.evaluation.results import compare, rank
from llrag_cli.evaluation.run import Scored
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.video import VideoWriter
from runs.records import record_of

BACKEND = Backend("offline: pixels", features=lambda frames: frames.mean(dim=(2, 3)), flow=None)
BRIGHTNESS = Metric(
    "brightness",
    "mean brightness",
    "bright",
    "0 to 1",
    "lower",
    *of_series(mean_of, Series("brightness", lambda clip: float(clip.frames.mean()), plot="Brightness over time")),
    ranked=("offline",),
)


@pytest.fixture
def brightness(monkeypatch: pytest.MonkeyPatch) -> Metric:
    monkeypatch.setitem(METRICS, "brightness", BRIGHTNESS)
    return BRIGHTNESS


def gray(path: Path, value: float) -> Path:
    path.parent.mkdir(parents=True)
    writer = VideoWriter(path, fps=8)
    writer.write(torch.full((40, 3, 32, 32), 2 * value - 1))
    writer.close()
    return path


def test_an_added_metric_is_in_the_benchmark_files(
    brightness: Metric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(("tiny",), (strategy_variant("none"), strategy_variant("nearest")), (5.0,), ((1, "a room"),), (0,))
    scored = []
    for case, value in zip(grid.cases(), (0.25, 0.75), strict=True):
        gray(RunFolder(case.folder(tmp_path)).video, value)
        frames = torch.full((40, 3, 32, 32), value)
        scored.append(Scored(case, 5.0, score(frames, fps=8, backend=BACKEND), BACKEND.name))
    assert [video.scores.metrics["brightness"] for video in scored] == pytest.approx([0.25, 0.75])
    monkeypatch.setattr(report, "read", lambda folder: Run(folder.video, record_of(), ()))
    results = compare(scored, baseline="none", ranked=["brightness"])
    assert results[0]["memories"]["none"]["average_rank"] == 1  # lower is better
    write_report(tmp_path, grid, results, scored, backend=BACKEND)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["metrics"]["brightness"] == {"heading": "mean brightness", "unit": "0 to 1", "better": "lower"}
    assert content["videos"][1]["metrics"]["brightness"] == pytest.approx(0.75)
    assert content["videos"][1]["per_clip"]["brightness"] == pytest.approx([0.75] * 3)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert float(rows[0]["brightness"]) == pytest.approx(0.25)
    page = (tmp_path / "report.html").read_text()
    assert "mean brightness ↓ (ranked)" in page and "tiny: Brightness over time" in page


def test_an_added_metric_is_in_the_table_of_scores(brightness: Metric, llrag: Llrag, tmp_path: Path) -> None:
    gray(tmp_path / "a/1.mp4", 0.5)
    table = llrag("bench", "score", "a/1.mp4")
    assert table.returncode == 0, table.stderr
    assert " bright" in table.stdout
    content = json.loads(llrag("bench", "score", "a/1.mp4", "--json").stdout)
    assert content["videos"][0]["metrics"]["brightness"] == pytest.approx(0.5, abs=0.02)


def test_every_entry_is_complete_and_some_backend_computes_it() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name and metric.heading and metric.short and metric.unit
        assert set(metric.ranked).isdisjoint(metric.unavailable)
        assert set(metric.unavailable) < {"offline", "official"}
    assert len({metric.short for metric in METRICS.values()}) == len(METRICS)
    assert ranked_metrics("offline") == [
        "consistency_within",
        "consistency_across",
        "motion_smoothness",
        "temporal_flickering",
    ]
    assert ranked_metrics("official") == [
        "subject_consistency",
        "background_within",
        "temporal_flickering",
        "aesthetic_quality",
    ]


def test_a_metric_that_this_machine_cannot_compute_is_left_out_with_its_reason() -> None:
    backend = Backend("official: x", features=lambda frames: frames, flow=None, missing={"dynamic_degree": "no RAFT"})
    names = {metric.name for metric in metrics_of(backend, sprites=True)}
    assert names == set(METRICS) - {"dynamic_degree", "motion_smoothness"}
    assert unavailable(backend)["dynamic_degree"] == "no RAFT"
    assert not any(metric.sprites for metric in metrics_of(backend, sprites=False))


def test_ranks_follow_the_better_direction() -> None:
    means = {"a": {"chroma_noise_growth": 2.0}, "b": {"chroma_noise_growth": 1.0}}
    assert rank(means, ["chroma_noise_growth"]) == {"a": 2, "b": 1}


def test_a_case_goes_into_one_folder_each() -> None:
    case = Case("presets/mine.yaml", "none", 3, "a", 2000)
    assert case.folder(Path("b")) == Path("b/videos/mine/none/003-seed2000")


def test_a_slope_is_per_minute() -> None:
    """Ten clips of two seconds: a similarity that falls by 0.01 a clip falls by 0.3 a minute."""
    falling = [None, *(1 - 0.01 * number for number in range(9))]
    video = Video(per_clip={"to_first": falling}, metrics={}, clip_seconds=2.0, backend=BACKEND)
    metric = METRICS["similarity_slope"]
    assert metric.compute(video) == pytest.approx(-0.3)
    assert (metric.short, metric.unit) == ("slope/min", "cosine per minute")
