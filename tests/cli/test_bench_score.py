"""``llrag bench score``: files that are videos, and files that are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import Llrag
from llrag_cli.runs.video import VideoWriter


def write(path: Path, frames: int, *, size: int = 64, fps: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, fps=fps)
    picture = torch.rand(3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(picture[None], scale_factor=8, mode="bilinear")[0] * 2 - 1
    writer.write(torch.stack([picture.roll(number, dims=2) for number in range(frames)]))
    writer.close()
    return path


def test_a_folder_of_videos_is_scored(llrag: Llrag, tmp_path: Path) -> None:
    for memory in ("none", "nearest"):
        for number in (1, 2):
            write(tmp_path / f"all/{memory}/{number}.mp4", 20, seed=number)
    done = llrag("bench", "score", "all", "--json", "--rank-folders")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == 2 and told["backend"].startswith("offline: ")
    assert [video["frames"] for video in told["videos"]] == [20] * 4
    assert all(0.5 < video["metrics"]["consistency_within"] <= 1 for video in told["videos"])
    for kind in ("average_rank", "drift_rank"):
        assert {folder[kind] for folder in told["folders"].values()} == {1.5}  # the same videos
    assert told["unavailable"]["aesthetic_quality"] == "needs CLIP and the LAION head"
    assert "imaging quality (MUSIQ" in told["not_measured"]
    table = llrag("bench", "score", "all/none/1.mp4", "all/nearest", "--rank-folders").stdout
    assert "all/none/1.mp4" in table and "across" in table and "average rank" in table
    assert table.count("MUSIQ") == 1


def broken(folder: Path) -> dict[str, bytes]:
    whole = write(folder / "whole.mp4", 30).read_bytes()
    return {"text.mp4": b"not a video at all", "empty.mp4": b"", "head.mp4": whole[:300]}


def test_files_that_are_not_videos_are_skipped_or_refused(llrag: Llrag, tmp_path: Path) -> None:
    for name, content in broken(tmp_path).items():
        (tmp_path / name).write_bytes(content)
    done = llrag("bench", "score", ".", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [video["video"] for video in told["videos"]] == ["whole.mp4"]
    assert told["left_out"] == ["empty.mp4", "head.mp4", "text.mp4"]
    assert done.stderr.count("cannot be read as a video: skipped") == 3
    strict = llrag("bench", "score", ".", "--strict")
    assert strict.returncode == 1
    assert "`empty.mp4` cannot be read as a video" in strict.stderr
    alone = llrag("bench", "score", "text.mp4")
    assert alone.returncode == 1
    assert "none of 1 file can be read as a video" in alone.stderr


def test_a_video_cut_short_is_scored_as_far_as_it_goes(llrag: Llrag, tmp_path: Path) -> None:
    """Ours are written in fragments, so that a killed run can be read."""
    whole = write(tmp_path / "whole.mp4", 80).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(0.7 * len(whole))])
    told = json.loads(llrag("bench", "score", "cut.mp4", "--json").stdout)
    assert 16 <= told["videos"][0]["frames"] < 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.mp4"], "no such file: `nowhere.mp4`"),
        (["void"], "`void` contains no mp4 file"),
        (["a", "--rank-folders"], "all videos are in one folder"),
        (["a", "b", "--rank-folders"], "videos of different sizes cannot be ranked: 48x48, 64x64"),
        (["a", "c", "--rank-folders"], "the folders cannot be ranked: `c` has no consistency_across"),
    ],
)
def test_bad_requests_get_a_sentence(llrag: Llrag, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "void").mkdir()
    write(tmp_path / "a/1.mp4", 20)
    write(tmp_path / "b/1.mp4", 20, size=48)
    write(tmp_path / "c/1.mp4", 9)
    done = llrag("bench", "score", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "hint: " in done.stderr
