"""What a scene uses: how many latent frames pictures, clips and runs hold."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from llrag_cli.errors import UsageError
from llrag_cli.presets import load_config
from llrag_cli.scenes.sources import latent_frames_of

TINY = load_config("tiny")  # latent frames of 4 video frames


@pytest.mark.parametrize(
    ("frames", "latent_frames"),
    [(0.4, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (41, 11), (8.9999, 3)],  # the last is 9 frames in floating point
)
def test_a_clip_holds_the_latent_frames_that_it_fills(
    monkeypatch: pytest.MonkeyPatch, frames: float, latent_frames: int
) -> None:
    about = SimpleNamespace(seconds=frames / TINY.backbone.fps)
    monkeypatch.setattr("llrag_cli.files.clip.probe_clip", lambda path: about)
    assert latent_frames_of(Path("clip.mp4"), TINY) == latent_frames


@pytest.mark.parametrize("name", ["run.json", "latents.safetensors"])
def test_a_run_has_a_record_and_latents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="is not a run: it has no"):
        latent_frames_of(tmp_path, TINY)


def run(folder: Path, *shape: int) -> Path:
    """What is looked at of a run."""
    (folder / "run.json").touch()
    save_file({"latents": torch.zeros(shape)}, folder / "latents.safetensors")
    return folder


def test_a_run_holds_what_its_latents_say(tmp_path: Path) -> None:
    height, width = TINY.backbone.height, TINY.backbone.width
    assert latent_frames_of(run(tmp_path, 7, 4, height, width), TINY) == 7
    with pytest.raises(UsageError, match=f"has latents of {height}x{width + 2}, but"):
        latent_frames_of(run(tmp_path, 7, 4, height, width + 2), TINY)
    with pytest.raises(UsageError, match="is not finished"):
        latent_frames_of(run(tmp_path, 0, 4, height, width), TINY)


def test_a_run_that_was_cut_off_is_not_finished_rather_than_damaged(tmp_path: Path) -> None:
    run(tmp_path, 0, 4, TINY.backbone.height, TINY.backbone.width)
    with (tmp_path / "latents.safetensors").open("ab") as file:
        file.write(bytes(64))  # a block whose header was not written yet
    with pytest.raises(UsageError, match="is not finished"):
        latent_frames_of(tmp_path, TINY)
