"""Takes are compared by how much their shots change, and what a cut changes does not count."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.evaluation.takes import offline_features, shot_drift, write_sheet
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import VideoWriter
from llrag_cli.scenes.timeline import next_shot
from runs.records import record_of

BLOCKS = 6  # three for each of two shots: frames 0-32 and 33-68
CUT = 33


def record_with_cut(seed: int = 0) -> RunRecord:
    """The record of a run with a cut in its middle."""
    record = record_of(seed=seed)
    first = record.timeline.model_copy(update={"shots": (record.timeline.shots[0].until(1),)}).lasting(BLOCKS // 2)
    timeline = first.with_shot(next_shot(first, "a dog", start=BLOCKS // 2, stop=BLOCKS, cut=True))
    return record.with_timeline(timeline, seconds=timeline.seconds)


def write_levels(path: Path, levels: Tensor) -> Path:
    """A video whose frames are gray, of levels in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, fps=8, upscale=4, crf=1)
    writer.write((2 * levels - 1)[:, None, None, None].expand(-1, 3, 16, 16))
    writer.close()
    return path


def angles(frames: Tensor) -> Tensor:
    """Unit vectors [T, 2], whose angle is the level of a frame: levels a and b have the similarity cos(a - b)."""
    level = frames.mean(dim=(1, 2, 3))
    return torch.stack([level.cos(), level.sin()], dim=1)


def steady() -> Tensor:
    """Each shot of one level, with a jump at the cut."""
    return torch.tensor([0.1] * CUT + [0.9] * (69 - CUT))


def drifting(amount: float) -> Tensor:
    """Both shots become brighter by an amount, evenly."""
    return 0.1 + torch.cat([torch.linspace(0, amount, CUT), torch.linspace(0, amount, 69 - CUT)])


def test_a_cut_alone_is_no_drift(tmp_path: Path) -> None:
    video = write_levels(tmp_path / "video.mp4", steady())
    assert shot_drift(video, record_with_cut().timeline, angles) == pytest.approx(0, abs=1e-5)


def test_drift_is_the_mean_dissimilarity_of_eight_frames_with_the_first(tmp_path: Path) -> None:
    video = write_levels(tmp_path / "video.mp4", drifting(0.8))
    first = [4 * step / 32 * 0.8 for step in range(1, 9)]  # frames 0, 4, ... 32 of the first shot
    second = [round(35 * step / 8) / 35 * 0.8 for step in range(1, 9)]  # of 36 frames
    expected = sum(1 - sum(map(math.cos, shot)) / 8 for shot in (first, second)) / 2
    assert shot_drift(video, record_with_cut().timeline, angles) == pytest.approx(expected, rel=0.03)


def test_takes_are_ranked_by_drift(tmp_path: Path) -> None:
    runs = []
    for number, levels in enumerate((drifting(0.8), steady(), drifting(0.4)), start=1):
        folder = RunFolder(tmp_path / f"take-{number}")
        write_levels(folder.video, levels)
        runs.append((folder, record_with_cut(seed=6 + number)))
    sheet = write_sheet(tmp_path, runs, title="Three takes", features=angles)
    assert sheet.drift is not None
    assert sorted(range(3), key=sheet.drift.__getitem__) == [1, 2, 0]
    page = sheet.page.read_text()
    places = [
        page.index(text) for text in ("take 1 · seed 7", "rank 3", "take 2 · seed 8", "rank 1", "take 3", "rank 2")
    ]
    assert places == sorted(places)
    assert page.count("drift 0.") == 3
    assert (sheet.picture.name, sheet.page.name) == ("takes.png", "takes.html")
    with Image.open(sheet.picture) as picture:
        assert picture.format == "PNG"


def test_takes_without_features_are_not_ranked(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "take-1")
    write_levels(folder.video, steady())
    sheet = write_sheet(tmp_path, [(folder, record_with_cut())], title="One take")
    assert sheet.drift is None
    page = sheet.page.read_text()
    assert "take 1 · seed 0" in page and "drift 0." not in page and "rank 1" not in page


def test_one_take_has_a_drift_and_no_rank(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "take-1")
    write_levels(folder.video, steady())
    page = write_sheet(tmp_path, [(folder, record_with_cut())], title="One take", features=angles).page.read_text()
    assert page.count("drift 0.") == 1 and "rank 1" not in page


def test_without_the_extra_there_are_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str, device: str) -> None:
        raise LlragError(f"{kind} is not installed on {device}")

    monkeypatch.setattr("llrag_cli.evaluation.metrics.backends.find_backend", missing)
    assert offline_features() is None
