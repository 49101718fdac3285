"""Distil the embedded backbone to few sampling steps by distribution matching.

As in DMD2 (Yin et al. 2024) and Self-Forcing (Huang et al. 2025): a *student* makes blocks in few steps. Noise is added
to them, and two models denoise the result: the *teacher*, which knows what true blocks look like, and a *critic*, which
is trained along on the student's blocks. The difference between the two says where the student's blocks are unlike true
ones. All three are the same network, and each block is made in the context that the training clip gives it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from llrag_cli.models.embedded.text import TinyText
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.embedded.lessons import Batch
from llrag_cli.training.embedded.network import Network, Teacher, noised, spread
from llrag_cli.training.embedded.optim import optimizers
from llrag_cli.training.embedded.train_backbone import save_weights

logger = logging.getLogger(__name__)

SCHEDULE = FlowMatchSchedule(steps=(1000, 750, 500, 250), shift=5.0, warp=True)  # as in the real backbones' presets
NOISE = (0.02, 0.98)  # range of the sigmas at which blocks are compared, before the shift
COMPARED_SHIFT = 3.0
MOST = 2.0  # largest weighted difference that the student learns from

Draw = Callable[[int, TinyText, random.Random], tuple[str, Batch]]


def student_sigmas() -> list[float]:
    """The sigmas at which the student denoises, from 1 down."""
    return [float(timestep) / 1000 for timestep in SCHEDULE.steps]


def sampled(student: Network, batch: Batch, *, last: int, generator: torch.Generator) -> Tensor:
    """Blocks that the student makes of noise in the steps up to ``last``; only that one has a gradient."""
    shape = batch.latents[:, batch.clean :].shape
    blocks = torch.randn(shape, generator=generator)
    for number, level in enumerate(student_sigmas()[: last + 1]):
        sigma = torch.full(shape[:2], level)
        noisy = blocks if number == 0 else noised(blocks, sigma, generator)
        with torch.set_grad_enabled(number == last):
            blocks = student.clean(batch, noisy, sigma)
    return blocks


def compared_sigmas(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random sigmas at which the student's blocks are judged."""
    low, high = NOISE
    uniform = low + (high - low) * torch.rand(tuple(shape), generator=generator)
    return COMPARED_SHIFT * uniform / (1 + (COMPARED_SHIFT - 1) * uniform)


@torch.no_grad()
def correction(
    teacher: Teacher, critic: Network, batch: Batch, blocks: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Where blocks should go, as a difference to them, and how far teacher and critic are apart.

    The difference of the two predictions is divided by the teacher's mean distance from the block (DMD, eq. 8).
    """
    sigma = compared_sigmas(blocks.shape[:2], generator)
    noisy = noised(blocks, sigma, generator)
    true, fake = teacher.clean(batch, noisy, sigma), critic.clean(batch, noisy, sigma)
    scale = (blocks - true).abs().mean(dim=(2, 3, 4, 5), keepdim=True).clamp_min(1e-3)
    return ((true - fake) / scale).clamp(-MOST, MOST), float((true - fake).square().mean())


def critic_loss(critic: Network, batch: Batch, blocks: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mean squared error of the critic's flow on the student's blocks."""
    sigma = compared_sigmas(blocks.shape[:2], generator)
    noisy = noised(blocks, sigma, generator)
    return ((critic.clean(batch, noisy, sigma) - blocks) / spread(sigma)).square().mean()


def distil(
    student: Network,
    draw: Draw,
    out: Path,
    *,
    teacher_weights: Path,
    guidance: float,
    steps: int,
    critic_steps: int = 2,
    matrix_lr: float = 1e-3,
    other_lr: float = 2e-4,
    seed: int = 0,
    minutes: float | None = None,
) -> None:
    """Train a student in place; its averaged weights go to ``out``.

    ``draw`` gives the batch of a step (``Lessons.draw``, ``OwnRollouts.draw``). The teacher is guided by ``guidance``.
    The critic begins as the teacher, and takes ``critic_steps`` of its own for each of the student's.
    """
    teacher, critic = Teacher(Network.of(teacher_weights), guidance), Network.of(teacher_weights)
    learning = {
        name: optimizers(network.model, matrix_lr=matrix_lr, other_lr=other_lr)
        for name, network in (("student", student), ("critic", critic))
    }
    rates = [(group, group["lr"]) for optims in learning.values() for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in student.model.state_dict().items()}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    began = saved = time.monotonic()
    count = len(SCHEDULE.steps)
    apart: dict[str, float] = {}
    for step in range(steps):
        passed = (time.monotonic() - began) / (60 * minutes) if minutes else 0.0
        if passed >= 1:
            break
        progress = max(step / steps, passed)
        for group, rate in rates:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * min(1.0, max(0.05, 2 * (1 - progress)))
        kind, batch = draw(step, student.text, rng)
        blocks = sampled(student, batch, last=rng.randrange(count), generator=generator)
        toward, gap = correction(teacher, critic, batch, blocks.detach(), generator=generator)
        loss = 0.5 * (blocks - (blocks + toward).detach()).square().mean()
        _learn(loss, student, learning["student"])
        for _ in range(critic_steps):
            _learn(critic_loss(critic, batch, blocks.detach(), generator=generator), critic, learning["critic"])
        for name, value in student.model.state_dict().items():
            average[name].lerp_(value, max(0.01, 1 / (step + 2)))
        apart[kind] = gap if kind not in apart else apart[kind] + 0.05 * (gap - apart[kind])
        if (step + 1) % 20 == 0:
            report = ", ".join(f"{name} {value:.4f}" for name, value in apart.items())
            logger.info("step %d of %d: teacher and critic apart by %s", step + 1, steps, report)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            save_weights(average, out)
    save_weights(average, out)


def _learn(loss: Tensor, network: Network, optims: Sequence[torch.optim.Optimizer]) -> None:
    """One step of gradient descent."""
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(network.model.parameters(), 1.0)
    for optim in optims:
        optim.step()
        optim.zero_grad(set_to_none=True)
