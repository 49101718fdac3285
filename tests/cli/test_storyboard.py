"""``llrag storyboard``: one block and one picture of each shot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.nn.functional import avg_pool2d

from conftest import Done, Llrag, call_llrag
from llrag_cli.runs.video import read_video

SCENE = """\
title: There and back
seed: 5
takes: 3
set: {sampler.steps: [1000]}
shots:
  - {name: arrival, prompt: a red circle bounces around in front of a blue wall, seconds: 20}
  - {prompt: a green square bounces around in front of a blue wall, seconds: 1}
  - {name: away, prompt: a white cross orbits in front of a gray wall, seconds: 30, cut: true, remember: none}
"""
NAMES = ["arrival", "shot-2", "away"]
MIDDLES = [4, 15, 27]  # of the frames 0-8, 9-20 and 21-32 of three blocks


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a storyboard, and how the command ended."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "scene.yaml").write_text(SCENE)
    return folder / "board", call_llrag(folder, "storyboard", "scene.yaml", "--out", "board")


def columns_of(picture: Image.Image) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the cells of a sheet with one row, each a picture wider than 100 pixels."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    drawn = (pixels != pixels[0, 0]).any(axis=2)  # not the background
    rows = np.flatnonzero(drawn.mean(axis=1) > 0.75)  # text covers less
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    filled = np.concatenate([[False], drawn[top:bottom].mean(axis=0) > 0.75, [False]])
    edges = np.flatnonzero(filled[1:] != filled[:-1])
    return [(int(left), top, int(right), bottom) for left, right in edges.reshape(-1, 2) if right - left > 100]


def test_a_storyboard_is_a_sheet_and_a_page(board: tuple[Path, Done]) -> None:
    folder, done = board
    assert done.returncode == 0, done.stderr
    assert done.stdout == "board/storyboard.png\nboard/storyboard.html\n"
    assert sorted(path.name for path in folder.iterdir()) == ["run", "storyboard.html", "storyboard.png"]
    page = (folder / "storyboard.html").read_text()
    for text in ("There and back", *NAMES, "a white cross orbits in front of a gray wall"):
        assert text in page


def test_each_shot_has_one_block(board: tuple[Path, Done]) -> None:
    record = json.loads((board[0] / "run/run.json").read_text())
    shots = record["timeline"]["shots"]
    assert [(shot["name"], shot["kind"]) for shot in shots] == list(zip(NAMES, ("start", "switch", "cut"), strict=True))
    assert [(shot["start"], shot["stop"]) for shot in shots] == [(0, 1), (1, 2), (2, 3)]
    assert [shot["remember"] for shot in shots] == ["all", "all", "none"]
    assert (record["seed"], record["video_frames"]) == (5, 33)


def test_the_sheet_shows_the_middle_of_each_shot(board: tuple[Path, Done]) -> None:
    video = read_video(board[0] / "run/video.mp4")
    with Image.open(board[0] / "storyboard.png") as sheet:
        cells = columns_of(sheet)
        assert len(cells) == len(NAMES)
        assert len({right - left for left, _, right, _ in cells}) == 1
        shown = [np.asarray(sheet.convert("RGB").crop(cell).resize((64, 64))) / 255 for cell in cells]
    small = avg_pool2d(video, video.shape[-1] // 64)
    frames = [frame.permute(1, 2, 0).numpy() for frame in small]  # [64, 64, 3], in [0, 1]
    for picture, middle in zip(shown, MIDDLES, strict=True):
        distances = [float(np.abs(picture - frame).mean()) for frame in frames]
        assert distances[middle] < 0.02
        assert distances[middle] == min(distances)


def test_a_storyboard_is_replaced_by_force_only(board: tuple[Path, Done], llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "scene.yaml").write_text(SCENE)
    shutil.copytree(board[0], tmp_path / "board")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused = llrag("storyboard", "scene.yaml", "--out", "board")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: `board/run` already contains a run\n\nhint: ")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    (tmp_path / "board/storyboard.html").unlink()  # as if it had been killed before its end
    other = llrag("storyboard", "scene.yaml", "--out", "board", "--seed", "6")
    assert other.returncode == 2 and "was started with other settings: `seed`" in other.stderr
    continued = llrag("storyboard", "scene.yaml", "--out", "board")
    assert continued.returncode == 0 and (tmp_path / "board/storyboard.html").exists(), continued.stderr
    forced = llrag("storyboard", "scene.yaml", "--out", "board", "--force", "--seed", "6", "--json")
    assert forced.returncode == 0, forced.stderr
    assert json.loads(forced.stdout) == {
        "folder": "board",
        "picture": "board/storyboard.png",
        "page": "board/storyboard.html",
    }
    assert json.loads((tmp_path / "board/run/run.json").read_text())["seed"] == 6
    assert (tmp_path / "board/storyboard.png").read_bytes() != (board[0] / "storyboard.png").read_bytes()
