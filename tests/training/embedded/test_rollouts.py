from __future__ import annotations

import math
import random

import pytest
import torch

from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change
from llrag_cli.memory.history import History, average_pool
from llrag_cli.models.embedded.model import LATENT, load_embedded, weights_folder
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.embedded.lessons import BLOCK
from llrag_cli.training.embedded.network import Network
from llrag_cli.training.embedded.rollouts import MEMORY, OwnRollouts, embedded
from llrag_cli.world.sprites import Scene, random_scene

WEIGHTS = weights_folder() / "backbone.safetensors"
SCHEDULE = FlowMatchSchedule(steps=(1000, 500), shift=5.0, warp=True)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(0)
    return [random_scene(rng) for _ in range(8)]


def rollouts(student: Network, scenes: list[Scene], *, switches: bool) -> OwnRollouts:
    return OwnRollouts(student, scenes, SCHEDULE, videos=1, blocks=7, learned=3, switches=switches, uses=2)


@pytest.mark.parametrize("switches", [False, True])
def test_blocks_are_made_again_in_the_contexts_that_they_had(scenes: list[Scene], switches: bool) -> None:
    """What the student predicts of a row in training is what it predicts of that block in the rollout."""
    student = Network.of(WEIGHTS)
    own = rollouts(student, scenes, switches=switches)
    _, batch = own.draw(0, student.text, random.Random(1))
    latents, texts = own._latents, own._texts
    noisy_rows = batch.latents.shape[1] - batch.clean
    assert noisy_rows == 3 and latents.shape == (1, 7 * BLOCK, *LATENT)
    starts = [
        next(start for start in range(0, 21, BLOCK) if torch.equal(latents[0, start : start + BLOCK], row))
        for row in batch.latents[0, batch.clean :]
    ]
    noise = torch.randn(1, noisy_rows, BLOCK, *LATENT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = student.clean(batch, noise, torch.ones(1, noisy_rows))
    transformer, _, _ = load_embedded(WEIGHTS)

    class Given:
        """The noise of the row for its block, so that one step from pure noise gives its prediction."""

        def draw(self, block: int, step: int, shape: object) -> torch.Tensor:
            return noise[:, starts.index(block * BLOCK)] if block * BLOCK in starts else torch.zeros(1, BLOCK, *LATENT)

    def once(start: int) -> Block:
        changes = {}
        if switches:
            changes = {own._switch: Change(embedded(student.text, [pair[1] for pair in texts]))}
        made = rollout(
            WanBackbone(transformer),
            embedded(student.text, [each[0] for each in texts]),
            frames=start + BLOCK,
            shape=LATENT,
            block=BLOCK,
            schedule=FlowMatchSchedule(steps=(1000,), shift=5.0, warp=True),
            memory=MEMORY,
            history=History(average_pool),
            noise=Given(),
            initial_latents=latents[:, :start] if start else None,
            changes=changes,
        )
        return list(made)[-1]

    for index, start in enumerate(starts):
        torch.testing.assert_close(predicted[:, index], once(start).latents, atol=2e-3, rtol=2e-3)


def test_videos_are_made_anew_with_what_the_student_has_learned(scenes: list[Scene]) -> None:
    student = Network.of(WEIGHTS)
    own, rng = rollouts(student, scenes, switches=False), random.Random(0)
    own.draw(0, student.text, rng)
    first = own._latents
    own.draw(1, student.text, rng)
    assert own._latents is first  # used twice
    with torch.no_grad():
        student.forced.transformer.proj_out.weight.zero_()
        student.forced.transformer.proj_out.bias.zero_()
    own.draw(2, student.text, rng)
    sigma = float(SCHEDULE.steps[1]) / 1000  # noise stays noise, mixed with more of it in the second step
    assert float(own._latents.std()) == pytest.approx(math.hypot(1 - sigma, sigma), abs=0.03)
