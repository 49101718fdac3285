from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llrag_cli.models.embedded.model import load_vae, weights_folder
from llrag_cli.models.embedded.storage import unpacked
from llrag_cli.presets import load_config
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.embedded.dataset import make_clips
from llrag_cli.training.embedded.distil import (
    MOST,
    SCHEDULE,
    correction,
    critic_loss,
    distil,
    sampled,
    student_sigmas,
)
from llrag_cli.training.embedded.lessons import Lessons
from llrag_cli.training.embedded.network import Network, Teacher
from llrag_cli.world.sprites import random_scene

WEIGHTS = weights_folder() / "backbone.safetensors"


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    vae = load_vae(weights_folder() / "vae.safetensors")
    clips = make_clips(vae, random_scene, count=2, frames=15, seed=0)
    openings = make_clips(vae, random_scene, count=12, frames=3, seed=1)
    return Lessons(clips, openings, (), batch=1, generator=torch.Generator().manual_seed(0))


def random_numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_student_samples_as_the_real_presets_do() -> None:
    sampler = load_config("self-forcing", memory="none").sampler
    real = FlowMatchSchedule(steps=sampler.steps, shift=sampler.shift, warp=sampler.warp)
    assert torch.equal(SCHEDULE.steps, real.steps)
    assert student_sigmas() == pytest.approx([float(real.sigma(step)) for step in real.steps], abs=1e-6)


@pytest.mark.parametrize("last", range(4))
def test_only_the_last_step_has_a_gradient(lessons: Lessons, last: int) -> None:
    student = Network.of(WEIGHTS)
    _, batch = lessons.draw(last, student.text, random.Random(0))  # an opening or a clip
    calls: list[bool] = []
    student.forced.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    blocks = sampled(student, batch, last=last, generator=random_numbers())
    assert calls == [False] * last + [True]
    assert blocks.requires_grad and blocks.shape == batch.latents[:, batch.clean :].shape


def test_where_critic_and_teacher_agree_nothing_is_corrected(lessons: Lessons) -> None:
    teacher, critic = Teacher(Network.of(WEIGHTS), 1.0), Network.of(WEIGHTS)
    _, batch = lessons.draw(0, critic.text, random.Random(0))
    blocks = batch.latents[:, batch.clean :]
    toward, gap = correction(teacher, critic, batch, blocks, generator=random_numbers())
    assert gap == 0 and (toward == 0).all()
    with torch.no_grad():
        critic.forced.transformer.proj_out.bias += 0.1  # predicts less of everything
    toward, gap = correction(teacher, critic, batch, blocks, generator=random_numbers())
    assert gap > 0 and (toward >= 0).all() and (toward > 0).any() and toward.max() <= MOST


def test_the_critic_learns_the_blocks_of_the_student(lessons: Lessons) -> None:
    critic = Network.of(WEIGHTS)
    _, batch = lessons.draw(1, critic.text, random.Random(0))
    true = batch.latents[:, batch.clean :]
    near = critic_loss(critic, batch, true, generator=random_numbers())
    far = critic_loss(critic, batch, true.flip(-1), generator=random_numbers())
    assert near < far  # it knows true blocks, and not mirrored ones in the same context


def test_a_few_steps_are_trained_and_kept(lessons: Lessons, tmp_path: Path) -> None:
    distil(
        Network.of(WEIGHTS),
        lessons.draw,
        tmp_path / "student.safetensors",
        teacher_weights=WEIGHTS,
        guidance=2.0,
        steps=3,
        critic_steps=1,
    )
    before = {name: value.half() for name, value in unpacked(load_file(WEIGHTS)).items()}
    after = load_file(tmp_path / "student.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in after.values())
