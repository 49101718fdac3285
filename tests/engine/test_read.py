"""In which denoising steps and layers retrieved frames are attended to, under the loop."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SHAPE, WatchedBackbone, Write, latents_of
from llrag_cli.cache.kv import WanKVLayerCache
from llrag_cli.cache.pages import Layout
from llrag_cli.cache.tiers import TIERS
from llrag_cli.config import RunConfig
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.errors import UsageError
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import Nearest, RetrievalMemory
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

RETRIEVING = Nearest(window=8, sink=1, retrieved=3, guard=1)
LAYERS, STEPS = 2, 2  # of the small backbone, and of its videos
FRAMES = 30
TOKENS = SHAPE[1] * SHAPE[2] // 4
PROMPTS = torch.randn(3, 1, 5, 8, generator=torch.Generator().manual_seed(1))


def reading(**settings: Any) -> RetrievalMemory:
    return Nearest.model_validate(RETRIEVING.model_dump() | settings)


def story(backbone: WatchedBackbone, memory: RetrievalMemory, **more: Any) -> Tensor:
    """A video with a reference, a change of the prompt and a cut."""
    noise = torch.randn(1, 4, *SHAPE, generator=torch.Generator().manual_seed(5))
    blocks = rollout(
        backbone,
        PROMPTS[0],
        frames=45,
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000, 500], shift=5.0),
        memory=memory,
        history=History(average_pool),
        noise=AddressedNoise(0),
        changes={5: Change(PROMPTS[1], pinned=(-1,)), 9: Change(PROMPTS[2], cut=True)},
        references=[Reference(noise, PROMPTS[2])],
        pinned=1,
        **more,
    )
    return latents_of(list(blocks))


@pytest.fixture
def frames_read(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Frames that each pass attends to besides its own block, by layer; sink and local frames too."""
    seen: dict[int, list[int]] = defaultdict(list)
    order: list[WanKVLayerCache] = []
    store = WanKVLayerCache.store

    def watched(cache: WanKVLayerCache, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        if cache not in order:
            order.append(cache)
        keys, values = store(cache, *tensors)
        seen[order.index(cache)].append(keys.shape[1] // TOKENS - 3)
        return keys, values

    monkeypatch.setattr(WanKVLayerCache, "store", watched)
    return seen


@pytest.mark.parametrize("times", ["collapsed", "ordered", "interpolated"])
@pytest.mark.parametrize("commit", ["full", "recent", "self"])
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("steps", [None, 1])
def test_every_rule_reads_archives_and_resumes_as_it_says(
    backbone: WatchedBackbone,
    frames_read: dict[int, list[int]],
    steps: int | None,
    layers: int | None,
    commit: str,
    times: str,
) -> None:
    """All combinations of what the clean pass reads, of steps and layers, and of rotary times."""
    memory = reading(read_steps=steps, read_layers=layers, commit=commit, times=times, archive="host")

    def video(**more: Any) -> list[Block]:
        schedule = FlowMatchSchedule(steps=[1000, 500], shift=5.0)
        history = History(average_pool)
        settings: dict[str, Any] = {"shape": SHAPE, "block": 3, "schedule": schedule, "history": history} | more
        return list(rollout(backbone, PROMPTS[0], frames=FRAMES, memory=memory, noise=AddressedNoise(0), **settings))

    archives: list[int] = []

    def keep(latents: Tensor) -> Tensor:
        cache = backbone.sessions[-1].cache
        archives[:] = [cache.archive.pool_bytes if cache.archive else 0]
        return average_pool(latents)

    blocks = video(history=History(keep))
    expected: dict[int, list[int]] = {layer: [] for layer in range(LAYERS)}
    for block in blocks:
        plain = len({*range(min(1, block.start)), *range(max(0, block.start - 1), block.start)})
        chosen = len(block.retrieved[0]) if block.retrieved else 0
        for layer in range(LAYERS):
            in_layer = layers is None or layer >= LAYERS - layers
            for step in range(STEPS):
                in_step = steps is None or step >= STEPS - steps
                expected[layer].append(plain + (chosen if in_layer and in_step else 0))
            clean = {"full": plain + (chosen if in_layer else 0), "recent": min(block.start, 5), "self": 0}
            expected[layer].append(clean[commit])
    assert any(block.retrieved for block in blocks)
    assert frames_read == expected
    page = Layout.of((TOKENS, 2, 16), torch.float32, eight_bit=False).bytes
    assert archives == [FRAMES * (layers or LAYERS) * page]
    whole = latents_of(blocks)
    assert bool(whole.isfinite().all())
    assert torch.equal(latents_of(video(initial_latents=whole[:, :18])), whole)


def test_reading_everywhere_is_the_default(write: Write) -> None:
    videos = [latents_of(write(memory, frames=30)) for memory in (RETRIEVING, reading(read_steps=2, read_layers=2))]
    assert torch.equal(*videos)
    first = next(block.start for block in write(RETRIEVING, frames=30) if block.retrieved)
    for settings in ({"read_steps": 1}, {"read_layers": 1}):
        other = latents_of(write(reading(**settings), frames=30))
        assert torch.equal(videos[0][:, :first], other[:, :first])
        assert not torch.allclose(videos[0][:, 21:], other[:, 21:], atol=1e-3)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("tier", TIERS)
def test_tiers_and_batches_agree(write: Write, backbone: WatchedBackbone, tier: str, block: int) -> None:
    memory = reading(read_steps=1, read_layers=1, archive=tier)
    together = latents_of(write(memory, batch=2, frames=30, block=block))
    alone = latents_of(write(memory, samples=(1,), frames=30, block=block))
    torch.testing.assert_close(together[1:], alone, atol=2e-4, rtol=2e-4)
    device = latents_of(write(reading(read_steps=1, read_layers=1), batch=2, frames=30, block=block))
    if tier in ("host", "disk"):
        assert torch.equal(together, device)
        assert torch.equal(story(backbone, memory), story(backbone, reading(read_steps=1, read_layers=1)))
    else:
        assert (together - device).pow(2).mean().sqrt() < 0.6 * device.std()


@pytest.mark.parametrize("tier", TIERS)
def test_resuming_reads_the_same(backbone: WatchedBackbone, tier: str) -> None:
    memory = reading(read_steps=1, read_layers=1, archive=tier)
    whole = story(backbone, memory)
    for known in (15, 30):
        assert torch.equal(story(backbone, memory, initial_latents=whole[:, :known]), whole)


@pytest.mark.parametrize("tier", TIERS)
def test_layers_that_read_nothing_are_not_archived(write: Write, backbone: WatchedBackbone, tier: str) -> None:
    sizes: dict[int, tuple[int, int, int]] = {}

    def measure(layers: int) -> None:
        def after(block: Block) -> None:
            cache = backbone.sessions[-1].cache
            archive = cache.archive
            stored = (0, 0) if archive is None else (archive.pool_bytes, archive.device_bytes)
            sizes[layers] = (cache.bytes, *stored)

        write(reading(read_layers=layers, archive=tier), frames=60, on_block=after)

    measure(1), measure(2)
    (window, pool, slots), (all_window, all_pool, all_slots) = sizes[1], sizes[2]
    assert slots * 2 == all_slots
    if tier == "device":  # 60 frames in one layer, 8 in the other
        assert window * 120 == all_window * 68
    else:
        assert window == all_window
        assert pool * 2 == all_pool or tier == "recompute"


def planned(tmp_path: Path, tier: str, *settings: str) -> dict[str, int]:
    config: RunConfig = load_config("tiny", settings=[f"memory.archive={tier}", *settings])
    budget = plan(config, tmp_path, device=torch.device("cpu"), dtype=torch.float32, seconds=60)
    return {part.name: part.bytes for part in budget.parts}


@pytest.mark.parametrize("tier", TIERS)
def test_the_plan_counts_the_layers_that_read(tmp_path: Path, tier: str) -> None:
    whole, quarter = planned(tmp_path, tier), planned(tmp_path, tier, "memory.read_layers=2")  # of 8
    archive = next(name for name in whole if name.startswith("archive"))
    assert quarter[archive] * (1 if tier == "recompute" else 4) == whole[archive]
    assert quarter["K/V that a block attends to"] < whole["K/V that a block attends to"]
    if tier == "device":
        assert "K/V window" not in whole and quarter["K/V window"] > 0
    else:
        assert quarter["retrieved K/V"] * 4 == whole["retrieved K/V"]
        assert quarter["K/V window"] == whole["K/V window"]
    assert planned(tmp_path, tier, "memory.read_layers=8", "memory.read_steps=2") == whole
    committing = planned(
        tmp_path, tier, "memory.read_layers=2", "memory.commit=recent"
    )  # its clean pass reads 12 frames
    assert committing["K/V that a block attends to"] == whole["K/V that a block attends to"]


def test_more_layers_than_there_are_are_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="read_layers 9 is more than the 8 layers of the backbone") as caught:
        planned(tmp_path, "host", "memory.read_layers=9")
    assert "at most 8" in caught.value.hint
