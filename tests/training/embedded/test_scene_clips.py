from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vae import TinyVAE
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.training.embedded.dataset import make_clips
from llrag_cli.training.embedded.scene_clips import (
    CUTS,
    SWITCHES,
    SceneClips,
    drawn_pair,
    load_scene_clips,
    make_scene_clips,
    return_caption,
    save_scene_clips,
    switch_captions,
    switch_video,
)
from llrag_cli.training.embedded.train_backbone import train_backbone
from llrag_cli.world.checker import judge
from llrag_cli.world.sprites import WORDS, held_out, vague_caption


@pytest.fixture(scope="module")
def clips() -> tuple[SceneClips, SceneClips]:
    """Two switch clips and two cut clips, as short as the training allows."""
    torch.manual_seed(0)
    vae = TinyVAE().eval()
    return (
        make_scene_clips(vae, "switch", shots=(0, 3, 7), count=2, seed=0),
        make_scene_clips(vae, "cut", shots=(0, 4, 7, 11), count=2, seed=0),
    )


@pytest.mark.parametrize("changes", [SWITCHES, CUTS])
def test_no_scene_is_held_out(changes: tuple[tuple[str, float], ...]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        before, after, change = drawn_pair(changes, rng)  # type: ignore[arg-type]
        for scene in (before, after):
            assert not any(held_out(replace(sprite, size="large"), scene.wall) for sprite in scene.sprites)
            colors = [sprite.color for sprite in scene.sprites]
            assert len({*colors, scene.wall}) == len(colors) + 1
        assert (before == after) == (change in ("nothing", "elsewhere"))


def test_a_switched_video_shows_one_scene_and_then_the_other() -> None:
    rng = random.Random(1)
    for _ in range(6):
        before, after, change = drawn_pair(SWITCHES, rng)
        if "pan" in (before.motion, after.motion):
            continue
        video, _ = switch_video(before, after, change, at=33, frames=77, rng=rng)
        assert len(video) == 77
        assert judge(video[:33], before).wall and judge(video[33:], after).wall
        assert judge(video[33:], after).all_colors


def test_captions_say_what_changed() -> None:
    rng = random.Random(2)
    for _ in range(300):
        before, after, change = drawn_pair(SWITCHES, rng)
        text = switch_captions(before, after, change, rng)[1]
        assert tokenize(text, limit=24)[1] == []
        if change == "wall":
            assert set(WORDS[after.wall]) & set(text.split())
        assert tokenize(return_caption(after, "elsewhere", rng), limit=24)[1] == []


def test_a_vague_caption_names_nothing() -> None:
    rng = random.Random(3)
    named = {word for name in ("circle", "square", "triangle", "cross", "large", "small") for word in WORDS[name]}
    for _ in range(100):
        scene, _, _ = drawn_pair(CUTS, rng)
        assert not named & set(vague_caption(scene, rng).split())
        assert set(WORDS[scene.wall]) & set(vague_caption(scene, rng, wall=True).split())


def test_clips_are_read_back(clips: tuple[SceneClips, SceneClips], tmp_path: Path) -> None:
    for written in clips:
        save_scene_clips(written, tmp_path / "clips.safetensors")
        read = load_scene_clips(tmp_path / "clips.safetensors")
        assert torch.equal(read.latents, written.latents) and torch.equal(read.shapes, written.shapes)
        assert (read.kind, read.shots, read.scenes, read.changes) == (
            written.kind,
            written.shots,
            written.scenes,
            written.changes,
        )


def test_a_few_steps_on_everything(clips: tuple[SceneClips, SceneClips], tmp_path: Path) -> None:
    """Training runs, and what it writes has the names and shapes of the released weights."""
    vae = TinyVAE().eval()
    plain, openings = (make_clips(vae, count=count, frames=frames, seed=0) for count, frames in ((1, 15), (20, 3)))
    out = tmp_path / "backbone.safetensors"
    train_backbone(plain, openings, out, scenes=clips, steps=4, batch=1)
    train_backbone(plain, openings, out, scenes=clips, steps=1, batch=1, resume=out)
    assert TinyText().config.length == 24
