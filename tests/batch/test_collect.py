"""Collecting latents: workers, resumption, and what they do not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import Llrag
from llrag_cli import LlragError, read_video
from llrag_cli.batch.collect import draw_prompts
from llrag_cli.runs.latents import LatentFolder, read_latents

PROMPTS = [f"a {color} circle bounces around on a plain gray wall" for color in ("red", "blue", "green", "white")]
SHORT = ("--backbone", "tiny", "--seconds", "1", "--set", "sampler.steps=[1000, 500]")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return file


def latents_in(folder: Path) -> dict[str, torch.Tensor]:
    return {file.name: read_latents(file).latents for file in LatentFolder(folder).files()}


def test_latents_of_every_prompt_with_what_they_are(llrag: Llrag, pool: Path, tmp_path: Path) -> None:
    done = llrag("collect", str(pool), "--out", "all", *SHORT, "--preview")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all\n"
    videos = [read_latents(file) for file in LatentFolder(tmp_path / "all").files()]
    assert [video.about["prompt"] for video in videos] == PROMPTS
    assert {video.about["backbone"] for video in videos} == {"tiny"}
    assert all(video.latents.ndim == 4 and len(video.latents) == 3 for video in videos)
    assert len(read_video(tmp_path / "all/latent_000002.mp4")) == 9


def test_workers_batches_and_interruptions_change_nothing(llrag: Llrag, pool: Path, tmp_path: Path) -> None:
    llrag("collect", str(pool), "--out", "alone", *SHORT)
    assert llrag("collect", str(pool), "--out", "shared", *SHORT, "--engine", "local:2", "--batch", "2").returncode == 0
    (tmp_path / "shared/latent_000001.safetensors").unlink()  # as if it had not been reached
    (tmp_path / "shared/latent_000001.safetensors.partial").write_bytes(b"half")
    done = llrag("collect", str(pool), "--out", "shared", *SHORT)
    assert "1 video to generate, 3 present" in done.stderr
    alone, shared = latents_in(tmp_path / "alone"), latents_in(tmp_path / "shared")
    assert alone.keys() == shared.keys()
    for name, latents in alone.items():
        assert (latents - shared[name]).abs().max() < 1e-4
    again = llrag("collect", str(pool), "--out", "shared", *SHORT, "--json")
    assert "0 videos to generate" in again.stderr
    assert [row["number"] for row in json.loads(again.stdout)] == [0, 1, 2, 3]


def test_a_share_of_the_prompts_is_drawn_with_a_seed() -> None:
    prompts = [f"prompt {number}" for number in range(100)]
    share = draw_prompts(prompts, ratio=0.3, seed=4)
    assert len(share) == 30
    numbers = [prompt.number for prompt in share]
    assert numbers == sorted(set(numbers))
    assert all(prompt.prompt == prompts[prompt.number] for prompt in share)
    assert draw_prompts(prompts, ratio=0.3, seed=4) == share != draw_prompts(prompts, ratio=0.3, seed=5)


def test_a_folder_with_other_settings_is_left_alone(llrag: Llrag, pool: Path, tmp_path: Path) -> None:
    LatentFolder(tmp_path / "other").begin({"seed": 1})
    done = llrag("collect", str(pool), "--out", "other", *SHORT)
    assert done.returncode == 2
    assert "`other` was started with other settings: `config`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ratio", "0"), "a fraction of 0 cannot be sampled"),
        (("--seconds", "0"), "a video cannot last 0 seconds"),
        (("--batch", "0"), "a batch of 0 cannot be generated"),
        (("--backbone", "tinny"), "did you mean `tiny`?"),
    ],
)
def test_usage(llrag: Llrag, pool: Path, arguments: tuple[str, ...], said: str) -> None:
    done = llrag("collect", str(pool), "--out", "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_originals_files_are_read(tmp_path: Path) -> None:
    latents = torch.randn(6, 16, 4, 4)
    torch.save(latents[None].bfloat16(), tmp_path / "latent_000003.pt")
    torch.save({"latents": latents}, tmp_path / "latent_000001.pt")
    torch.save({"z": latents}, tmp_path / "latent_000005.pt")  # the only tensor, whatever its name
    torch.save({"z": latents[:1], "latents": latents}, tmp_path / "latent_000006.pt")
    files = LatentFolder(tmp_path).files()
    assert [file.name for file in files] == [f"latent_00000{number}.pt" for number in (1, 3, 5, 6)]
    assert all(torch.equal(read_latents(file).latents, latents) for file in files[2:])
    assert torch.equal(read_latents(files[0]).latents, latents)
    assert read_latents(files[1]).latents.shape == latents.shape


def test_bad_latents_are_named(tmp_path: Path) -> None:
    file = tmp_path / "latent_000001.safetensors"
    save_file({"latents": torch.full((3, 4, 2, 2), float("nan"))}, file)
    with pytest.raises(LlragError, match="` contains values that are not finite"):
        read_latents(file)
    save_file({"latents": torch.zeros(3, 4)}, file)
    with pytest.raises(LlragError, match="does not contain the latents of a video"):
        read_latents(file)
