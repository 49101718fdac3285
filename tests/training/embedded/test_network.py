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
