from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from llrag_cli.models.embedded.model import load_vae, weights_folder
from llrag_cli.models.embedded.vocabulary import PAD
from llrag_cli.training.embedded.dataset import make_clips
from llrag_cli.training.embedded.lessons import opening_batch
from llrag_cli.training.embedded.network import Network, Teacher, noised, spread
from llrag_cli.training.embedded.train_backbone import HiddenStates
from llrag_cli.world.sprites import random_scene


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_teacher_is_guided_away_from_the_empty_prompt(guidance: float) -> None:
    vae = load_vae(weights_folder() / "vae.safetensors")
    network = Network.of(weights_folder() / "backbone.safetensors")
    data = make_clips(vae, random_scene, count=3, frames=3, seed=0)
    batch = opening_batch(data, torch.arange(3), network.text, random.Random(0))
    sigma = torch.tensor([[0.9], [0.6], [0.3]])
    noisy = noised(batch.latents, sigma, torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = network.flow(batch, noisy, sigma)
        silent = network.flow(replace(batch, prompts=torch.full_like(batch.prompts, PAD)), noisy, sigma)
    assert (told - silent).abs().max() > 0.1  # the prompt says something
    guided = Teacher(network, guidance).flow(batch, noisy, sigma)
    torch.testing.assert_close(guided, silent + guidance * (told - silent))
    clean = Teacher(network, guidance).clean(batch, noisy, sigma)
    torch.testing.assert_close(clean, noisy - spread(sigma) * guided)


@pytest.mark.parametrize("apart", [False, True])
def test_hidden_states_are_learned_from_a_teacher_that_stays_as_it_is(apart: bool) -> None:
    teacher, student = Network.new(seed=1), Network.new(seed=1)
    asked, own = teacher.forced.transformer, student.forced.transformer
    states = HiddenStates(own, asked, apart=apart)
    data = make_clips(load_vae(weights_folder() / "vae.safetensors"), random_scene, count=2, frames=3, seed=0)
    batch = opening_batch(data, torch.arange(2), student.text, random.Random(0))
    sigma = torch.full((2, 1), 0.5)

    def distance() -> torch.Tensor:
        Teacher(teacher, 1.0).flow(batch, batch.latents, sigma)
        student.flow(batch, batch.latents, sigma)
        return states.loss()

    assert distance().item() == 0
    wrong = 3
    with torch.no_grad():
        own.blocks[wrong].ffn.net[2].bias += 1
    distance().backward()
    assert all(weight.grad is None for weight in asked.parameters())
    learning = [number for number, block in enumerate(own.blocks) if (block.ffn.net[2].bias.grad != 0).any()]
    assert learning == [wrong] if apart else set(learning) > {wrong}
