from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from conftest import SHAPE
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.training.embedded.teacher_forcing import TeacherForced, lay_out, native_contexts, random_contexts, row_of


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_training_sees_what_generation_sees(transformer: WanTransformer3DModel, seed: int, native: bool) -> None:
    """The flow of all blocks in parallel equals that of a rollout over the same latents, under any strategy."""
    torch.manual_seed(seed)
    blocks, timestep = 6, torch.tensor(700.0)
    clean, noisy = torch.randn(2, 18, *SHAPE), torch.randn(2, 18, *SHAPE)
    prompt = torch.randn(2, 5, 8)
    keys = F.normalize(torch.randn(18, 4), dim=-1)
    rng = random.Random(seed)
    if native:
        contexts = native_contexts(rng, 18, block=3, window=8, sink=1)
    else:
        contexts = random_contexts(rng, keys, block=3, window=8, sink=1, retrieved=3, guard=1)
    rows = torch.cat((clean, noisy), dim=1).unflatten(1, (2 * blocks, 3))
    times = torch.cat((torch.zeros(2, blocks), torch.full((2, blocks), 700.0)), dim=1)
    layout = lay_out([[row_of(context) for context in contexts] * 2] * 2, block=3)
    with torch.no_grad():
        flows = TeacherForced(transformer)(rows, times, prompt, layout, clean=blocks)[:, blocks:].flatten(1, 2)
    backbone = WanBackbone(transformer)
    session = backbone.start(prompt, WanKVCache(layers=2, sink=1, recent=None, frames=18))
    for index, context in enumerate(contexts):
        frames = slice(3 * index, 3 * index + 3)
        doubled = replace(context, retrieved=context.retrieved * 2, retrieved_times=context.retrieved_times * 2)
        session.set_context(doubled, start=3 * index, block=3, height=SHAPE[1], width=SHAPE[2])
        torch.testing.assert_close(session.flow(noisy[:, frames], timestep), flows[:, frames], atol=1e-4, rtol=1e-4)
        session.update_cache(clean[:, frames], 0.0, [])
