"""How often the transformer's block is compiled: once for a preset, whatever happens in the video."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import latents_of
from llrag_cli.cache.kv import FramePages, KVBuffer, WanKVLayerCache
from llrag_cli.engine.pipeline import schedule_of
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.memory.history import History, average_pool
from llrag_cli.models.wan import transformer as module
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise

SHAPE = (4, 4, 4)
PROMPTS = torch.randn(4, 1, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def backbones() -> tuple[WanBackbone, WanBackbone]:
    """The same small random transformer twice; the second is for ``compiled``."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2, "freq_dim": 16}
        transformer = WanTransformer3DModel(**sizes, text_dim=8, in_channels=4, out_channels=4)
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        pair.append(WanBackbone(transformer))
    return pair[0], pair[1]


def compiled(backbone: WanBackbone, preset: str) -> WanBackbone:
    """Compiled for the blocks of a preset, by a compiler that is quick and exact."""
    backbone.compile(load_config(preset).backbone.frames_per_block, backend="aot_eager")
    return backbone


def video(backbone: WanBackbone, preset: str, memory: str, archive: str | None, *, batch: int) -> Iterator[Block]:
    """A video whose window fills, with switches and cuts, and with a reference that is not a whole block long."""
    settings = ["memory.keys=average", f"memory.archive={archive}"] if archive else []
    config = load_config(preset, memory=memory, settings=settings)
    block = config.backbone.frames_per_block
    third = 7 if block == 3 else 20
    prompts = [prompt.expand(batch, -1, -1) for prompt in PROMPTS]
    changes = {
        third: Change(prompts[1]),
        third + 2: Change(prompts[2], cut=True),
        third + 4: Change(prompts[3]),
        third + 5: Change(prompts[0], cut=True),
    }
    return rollout(
        backbone,
        prompts[0],
        frames=(third + 8) * block,
        shape=SHAPE,
        block=block,
        schedule=schedule_of(config),
        memory=config.memory,
        history=History(average_pool),
        noise=AddressedNoise(0, range(batch)),
        changes=changes,
        references=[Reference(torch.ones(batch, 4, *SHAPE), prompts[1])] if archive else [],
    )


@pytest.mark.parametrize(
    ("preset", "memory", "archive", "batch", "graphs"),
    [
        ("self-forcing", "none", None, 1, 1),
        ("self-forcing", "nearest", "host", 1, 1),
        ("self-forcing", "nearest", "recompute", 2, 2),  # old blocks are computed again video by video
        ("causal-forcing-framewise", "none", None, 1, 1),
        ("causal-forcing-framewise", "nearest", "device", 1, 1),
    ],
)
def test_a_preset_needs_one_graph_for_each_batch_size(
    backbones: tuple[WanBackbone, WanBackbone], preset: str, memory: str, archive: str | None, batch: int, graphs: int
) -> None:
    plain = latents_of([*video(backbones[0], preset, memory, archive, batch=batch)])
    counters.clear()
    blocks, after_first = [], 0
    for made in video(compiled(backbones[1], preset), preset, memory, archive, batch=batch):
        blocks.append(made)
        after_first = after_first or counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs
    assert after_first == graphs
    assert not counters["graph_break"]
    assert torch.equal(latents_of(blocks), plain)


def test_another_batch_size_needs_one_more_graph(backbones: tuple[WanBackbone, WanBackbone]) -> None:
    backbone = compiled(backbones[1], "self-forcing")
    counters.clear()
    for batch in (1, 2, 1, 2):
        for _ in range(2):
            next(video(backbone, "self-forcing", "none", None, batch=batch))
    assert counters["stats"]["unique_graphs"] == 2


def test_committed_blocks_pass_compiled_too(backbones: tuple[WanBackbone, WanBackbone]) -> None:
    """When a run is resumed their clean passes are the first of all, and must compute what they did before."""
    backbone = compiled(backbones[1], "self-forcing")
    counters.clear()
    config = load_config("self-forcing", memory="none")
    blocks = rollout(
        backbone,
        PROMPTS[0],
        frames=6,
        shape=SHAPE,
        block=3,
        schedule=schedule_of(config),
        memory=config.memory,
        history=History(average_pool),
        noise=AddressedNoise(0, range(1)),
        initial_latents=torch.ones(1, 3, *SHAPE),
    )
    next(blocks)
    assert counters["stats"]["unique_graphs"] == 1


def test_attention_with_its_cache_is_what_the_compiler_is_told() -> None:
    """The operator returns what its description for the compiler says: shape, dtype and strides."""
    cache = WanKVLayerCache(FramePages(sink=1, ring=6, frames=9), (KVBuffer(6), KVBuffer(6)))
    cache.set_context(lambda _: (), torch.ones(1, 0, 1, 8, 2), frames=0, tokens=6, block=18, hidden=slice(0, 0))
    inputs: list[Tensor] = [torch.randn(1, 18, 2, 16) for _ in range(4)]
    module._bound.current = module.Pass([cache], torch.ones(1, 18, 1, 8, 2))
    try:
        made = module.attend_with_cache(*inputs, torch.tensor(0))
    finally:
        module._bound.current = None
    with torch._subclasses.FakeTensorMode() as mode:
        told = module.attend_with_cache(*map(mode.from_tensor, inputs), torch.tensor(0))
    assert (made.shape, made.dtype, made.stride()) == (told.shape, told.dtype, told.stride())
