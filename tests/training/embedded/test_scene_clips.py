from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vae import TinyVAE
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.training.embedded.dataset import crowded_scene, joined, make_clips
from llrag_cli.training.embedded.lessons import Lessons
from llrag_cli.training.embedded.network import Network, Teacher
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
from llrag_cli.world.sprites import WORDS, held_out, random_scene, vague_caption


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
    plain = make_clips(vae, random_scene, count=1, frames=15, seed=0)
    openings = joined([make_clips(vae, scene, count=10, frames=3, seed=0) for scene in (random_scene, crowded_scene)])
    assert len(openings.scenes) == len(openings.latents) == 20
    out = tmp_path / "backbone.safetensors"

    def lessons(*, native: bool = False) -> Lessons:
        return Lessons(plain, openings, clips, batch=1, generator=torch.Generator().manual_seed(0), native=native)

    train_backbone(lessons(), out, steps=4)
    train_backbone(lessons(native=True), out, steps=1, resume=out, teacher=Teacher(Network.of(out), 2.0))
    teacher = Teacher(Network.of(out), 1.0)
    student = tmp_path / "student.safetensors"
    train_backbone(lessons(native=True), student, steps=5, teacher=teacher, match_states="together", keep_text=True)
    kept, learned = load_file(out), load_file(student)
    same = {name for name in kept if torch.equal(kept[name], learned[name])}
    assert {name for name in kept if name.startswith("text.")} <= same < set(kept)
    assert TinyText().config.length == 24
