"""A sink that is a running mean, frames found by attention, and retrieved frames aligned with the sink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from conftest import SHAPE, WatchedBackbone, Write, latents_of
from llrag_cli.cache.kv import KEYS, FramePages, WanKVCache, aligned
from llrag_cli.cache.rotary import rotate
from llrag_cli.cache.tiers import EXACT
from llrag_cli.config import RunConfig
from llrag_cli.engine import rollout as loop
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.errors import UsageError
from llrag_cli.memory.candidates import Candidates, attention_mass
from llrag_cli.memory.context import Stretch, context_of, leaving
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import Diverse, MeanSink, MemoryConfig, Nearest, SlidingWindow
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

PROMPTS = torch.randn(3, 1, 5, 8, generator=torch.Generator().manual_seed(1))
ATTENTION = Nearest(window=8, sink=1, retrieved=3, guard=1, keys="attention")


def story(backbone: WatchedBackbone, memory: MemoryConfig, **more: Any) -> list[Block]:
    """A video with a reference where that is possible, a change of the prompt, and a cut."""
    noise = torch.randn(1, 4, *SHAPE, generator=torch.Generator().manual_seed(5))
    settings: dict[str, Any] = {
        "changes": {5: Change(PROMPTS[1]), 9: Change(PROMPTS[2], cut=True)},
        "references": [Reference(noise, PROMPTS[2])] if memory.retrieves else [],
    }
    return list(story_blocks(backbone, memory, **{"frames": 45} | settings | more))


# --- a sink that is a running mean -------------------------------------------------------------------


def pages(*, sink: int, ring: int | None, dtype: torch.dtype = torch.float32, frames: int = 12) -> FramePages:
    """Pages of twelve frames, each of which is full of its own number."""
    filled = FramePages(sink=sink, ring=ring, frames=12)
    numbers = torch.arange(frames, dtype=dtype).view(1, -1, 1, 1, 1).expand(1, -1, 2, 1, 4)
    for start in range(0, frames, 3):
        filled.write(start, numbers[:, start : start + 3], -numbers[:, start : start + 3])
    return filled


@pytest.mark.parametrize("ring", [None, 12])
def test_frames_are_averaged_into_the_sink_in_turns(ring: int | None) -> None:
    filled = pages(sink=3, ring=ring)
    filled.average_into_sink([3, 4], 0.75)
    keys, values = filled.read([0, 1, 2, 3, 4])
    assert keys[0, :, 0, 0, 0].tolist() == [0.75 * 0 + 0.25 * 3, 0.75 * 1 + 0.25 * 4, 2, 3, 4]
    assert torch.equal(values, -keys)
    filled.average_into_sink([5, 6], 0.5)
    assert filled.read([0, 1, 2])[0][0, :, 0, 0, 0].tolist() == [0.5 * 0.75 + 0.5 * 6, 1.75, 0.5 * 2 + 0.5 * 5]


def test_one_frame_of_sink_takes_all() -> None:
    filled = pages(sink=1, ring=None)
    filled.average_into_sink([1, 2, 3], 0.5)
    assert filled.read([0])[0][0, 0, 0, 0, 0] == ((0 + 1) / 2 + 2) / 4 + 3 / 2
    filled.average_into_sink([4], 0)
    assert filled.read([0])[0][0, 0, 0, 0, 0] == 4


def test_half_precision_does_not_round_the_mean_away() -> None:
    """In bfloat16, 8 + 0.001 (16 - 8) is 8 again."""
    filled = pages(sink=1, ring=None, dtype=torch.bfloat16)
    alone = filled.bytes
    filled.write(0, torch.full((1, 1, 2, 1, 4), 8, dtype=torch.bfloat16), torch.ones(1, 1, 2, 1, 4).bfloat16())
    filled.write(1, torch.full((1, 1, 2, 1, 4), 16, dtype=torch.bfloat16), torch.ones(1, 1, 2, 1, 4).bfloat16())
    filled.average_into_sink([1] * 500, 0.999)
    mean = filled.read([0])[0]
    assert mean.dtype == torch.bfloat16
    assert mean.float().mean() == pytest.approx(16 - 8 * 0.999**500, rel=0.01)
    assert filled.bytes - alone == 2 * 2 * 4 * 4  # keys and values of two tokens, float32


def test_a_sink_that_is_written_again_begins_a_new_mean() -> None:
    filled = pages(sink=1, ring=None, dtype=torch.bfloat16)
    filled.average_into_sink([9], 0)
    filled.write(0, torch.zeros(1, 1, 2, 1, 4).bfloat16(), torch.zeros(1, 1, 2, 1, 4).bfloat16())
    filled.average_into_sink([1], 0.5)
    assert filled.read([0])[0].float().mean() == 0.5


@pytest.mark.parametrize(("window", "sink", "block"), [(12, 3, 3), (12, 1, 3), (8, 2, 3), (4, 1, 1), (4, 1, 3)])
def test_what_leaves_was_seen_by_the_block_before(window: int, sink: int, block: int) -> None:
    memory = MeanSink(window=window, sink=sink)
    left: list[int] = []
    for start in range(0, 12 * block, block):
        gone = leaving(memory, Stretch(), start=start, block=block)
        seen = context_of(memory, start=start, block=block).shared
        before = context_of(memory, start=start - block, block=block).shared if start else ()
        own = range(start - block, start)
        assert [*gone] == [frame for frame in (*before, *own) if 0 <= frame < start and frame not in seen]
        left += gone
    assert left == [*range(sink, sink + len(left))]  # every frame once, in order


def test_nothing_leaves_a_memory_without_a_window() -> None:
    assert leaving(SlidingWindow(window=None, sink=0), Stretch(), start=30, block=3) == range(0)


def test_times_are_those_of_slots_and_the_sink_has_the_first() -> None:
    memory = MeanSink(window=8, sink=2)
    context = context_of(memory, start=30, block=3)
    assert context.shared == (0, 1, *range(27, 30))
    assert context.shared_times == (0, 1, 2, 3, 4) and context.start_time == 5


def test_a_sink_that_keeps_everything_is_a_sink_that_stays(backbone: WatchedBackbone) -> None:
    """With decay 1 the video is that of retrieval without retrieved frames: the same frames at the same times."""
    kept = latents_of(story(backbone, MeanSink(window=8, sink=1, decay=1)))
    assert torch.equal(kept, latents_of(story(backbone, Nearest(window=8, sink=1, retrieved=0))))
    assert not torch.equal(kept, latents_of(story(backbone, MeanSink(window=8, sink=1, decay=0.5))))


@pytest.mark.parametrize("commit", ["full", "recent"])
def test_the_mean_is_of_all_frames_that_left(backbone: WatchedBackbone, commit: str) -> None:
    """After a video without changes, by hand from keys and values that the window of no video has lost."""
    memory = MeanSink(window=8, sink=1, decay=0.5, commit=commit)
    known: dict[int, Tensor] = {}
    mean: Tensor | None = None
    blocks = rollout(
        backbone,
        PROMPTS[0],
        frames=30,
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000], shift=5.0),
        memory=memory,
        history=History(average_pool),
        noise=AddressedNoise(0),
    )
    for block in blocks:
        layer = backbone.sessions[-1].cache.layers[1].pages
        for frame in range(block.start, block.start + 3):
            known[frame] = layer.read([frame])[0].clone()
        mean = known[0] if mean is None else mean
        for frame in leaving(memory, Stretch(), start=block.start, block=3):
            mean = 0.5 * mean + 0.5 * known[frame]
        torch.testing.assert_close(layer.read([0])[0], mean)


def test_resuming_replays_the_mean(backbone: WatchedBackbone) -> None:
    memory = MeanSink(window=8, sink=2, decay=0.9)
    whole = latents_of(story(backbone, memory))
    assert torch.equal(latents_of(story(backbone, memory, initial_latents=whole[:, :33])), whole)


def planned(config: RunConfig, *, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, int]:
    """Bytes of each part of what a video of 30 s takes."""
    budget = plan(config, folder, device=torch.device("cpu"), dtype=dtype, seconds=30)
    return {part.name: part.bytes for part in budget.parts}


def test_a_longer_sink_than_a_block_is_refused_and_the_mean_is_planned(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a sink of 4 is longer than a block of 3: not defined with `mean-sink`"):
        load_config("tiny", memory="mean-sink", settings=["memory.sink=4"])
    with pytest.raises(ValidationError, match="greater than 0"):
        MeanSink(sink=0)
    config = load_config("longlive-sink3", memory="mean-sink")
    parts = planned(config, dtype=torch.bfloat16, folder=tmp_path)
    assert parts["running mean of the sink"] == 3 * 2 * 30 * 1560 * 1536 * 4


# --- found by attention ------------------------------------------------------------------------------


def test_mass_is_the_softmax_over_frames_of_the_mean_logit() -> None:
    """As every query and every token of a frame would give it, one after the other."""
    queries = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0))  # [B, L, heads, D]
    keys = torch.randn(2, 5, 6, 3, 4, generator=torch.Generator().manual_seed(1))  # [B, M, tokens, heads, D]
    logits = torch.einsum("blhd,bmthd->bmlth", queries, keys) / 4**0.5
    slow = logits.mean((2, 3, 4)).softmax(1)
    fast = attention_mass(queries.mean(1).flatten(1), keys.mean(2).flatten(2), heads=3)
    torch.testing.assert_close(fast, slow)


def test_mass_is_what_the_strategies_rank_by() -> None:
    mass = torch.tensor([[0.1, 0.2, 0.4, 0.3]])
    keys = F.normalize(torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 0.1]]]), dim=-1)
    candidates = Candidates(torch.arange(10, 14), keys, keys[:, 0], 3, lambda: torch.zeros(1, 4), mass=mass)
    positions, similarities = Nearest(retrieved=2).choose(candidates)
    assert positions.tolist() == [[2, 3]]
    torch.testing.assert_close(similarities, torch.tensor([[1.0, 0.75]]))
    assert Diverse(retrieved=2, relevance=0.5).choose(candidates)[0].tolist() == [[2, 1]]  # unlike the first


def test_keys_and_queries_are_those_of_the_clean_pass(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the history holds of a block are the mean keys that are in its pages, and the query is of the same pass."""
    asked: list[tuple[int, Tensor, Tensor]] = []
    retrieve = loop.retrieve

    def watched(history: History, *rest: Any, **options: Any) -> Any:
        if options["start"] and options["draft"] is None:
            asked.append((options["start"], options["attention"].newest, history.keys.clone()))
        return retrieve(history, *rest, **options)

    monkeypatch.setattr(loop, "retrieve", watched)
    memory = ATTENTION.model_copy(update={"key_layer": 0})
    queries: list[Tensor] = []
    pages: list[Tensor] = []
    attend = backbone.transformer.blocks[0].attn1.norm_q
    attend.register_forward_hook(lambda *call: queries.append(call[2]))
    for block in story_blocks(backbone, memory):
        layer = backbone.sessions[-1].cache.layers[0].pages
        pages.append(layer.read(range(block.start, block.start + 3))[0].mean(2).flatten(2))
        clean = queries[-1]  # [B, L, heads * D], not rotated
        pages[-1] = torch.cat((pages[-1], clean.mean(1, keepdim=True)), dim=1)
    assert len(asked) == 9
    for number, (start, query, keys) in enumerate(asked):
        assert start == 3 * number + 3
        torch.testing.assert_close(keys[:, -3:], pages[number][:, :3])
        torch.testing.assert_close(query, pages[number][:, 3])


def story_blocks(backbone: WatchedBackbone, memory: MemoryConfig, **more: Any) -> Any:
    return rollout(
        backbone,
        PROMPTS[0],
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000, 500], shift=5.0),
        memory=memory,
        history=History(average_pool),
        noise=AddressedNoise(0),
        **{"frames": 30} | more,
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_all_exact_tiers_and_a_resumed_video_find_the_same(backbone: WatchedBackbone, layer: int) -> None:
    memories = [ATTENTION.model_copy(update={"archive": tier, "key_layer": layer}) for tier in EXACT]
    videos = [latents_of(story(backbone, memory)) for memory in memories]
    assert all(torch.equal(video, videos[0]) for video in videos)
    assert torch.equal(latents_of(story(backbone, memories[0], initial_latents=videos[0][:, :33])), videos[0])
    assert not torch.equal(videos[0], latents_of(story(backbone, ATTENTION.model_copy(update={"keys": "average"}))))


def test_a_video_found_by_attention_does_not_depend_on_its_batch(write: Write) -> None:
    both = latents_of(write(ATTENTION, frames=30, batch=2))
    for sample in (0, 1):
        torch.testing.assert_close(latents_of(write(ATTENTION, frames=30, samples=(sample,)))[0], both[sample])


def test_keys_come_from_two_thirds_of_the_way_unless_a_layer_is_named() -> None:
    assert [ATTENTION.attention_layer(layers) for layers in (1, 8, 30)] == [0, 5, 20]
    assert ATTENTION.model_copy(update={"key_layer": 29}).attention_layer(30) == 29
    assert ATTENTION.model_copy(update={"keys": "average"}).attention_layer(30) is None


def test_keys_of_the_history_are_planned_and_the_layer_must_exist(tmp_path: Path) -> None:
    config = load_config("self-forcing", settings=["memory.keys=attention"])
    parts = planned(config, folder=tmp_path)
    assert parts["keys of the history"] == 4 * 1536 * config.latent_frames(30)
    with pytest.raises(UsageError, match="key_layer 8 is none of the 8 layers of the backbone"):
        planned(load_config("tiny", settings=["memory.keys=attention", "memory.key_layer=8"]), folder=tmp_path)
    with pytest.raises(UsageError, match="key_layer is read by keys `attention` only"):
        load_config("tiny", settings=["memory.key_layer=2"])


# --- aligned with the sink ---------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0, 0.35, 1])
def test_alignment_moves_mean_and_deviation(strength: float) -> None:
    found = 3 + 2 * torch.randn(1, 4, 50, 2, 8, generator=torch.Generator().manual_seed(0))
    sink = torch.randn(1, 2, 50, 2, 8, generator=torch.Generator().manual_seed(1))
    moved = aligned(found, sink, strength)
    anchor = sink.flatten(1, 2)
    mean = (1 - strength) * found.mean(2) + strength * anchor.mean(1)[:, None]
    torch.testing.assert_close(moved.mean(2), mean)
    spread = (1 - strength) * found.std(2, correction=0) + strength * anchor.std(1, correction=0)[:, None]
    torch.testing.assert_close(moved.std(2, correction=0), spread)
    if strength == 0:
        assert torch.equal(moved, found)


def test_a_constant_channel_stays_finite() -> None:
    moved = aligned(torch.full((1, 1, 5, 1, 2), 7.0), torch.zeros(1, 1, 5, 1, 2), 0.5)
    assert torch.equal(moved, torch.full((1, 1, 5, 1, 2), 3.5))


def test_a_block_reads_retrieved_frames_aligned_and_keeps_them_as_they_are(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[Tensor, Tensor, Tensor]] = []
    pieces = WanKVCache._pieces

    def watched(cache: WanKVCache, number: int, kind: int, context: Any) -> Any:
        for piece in pieces(cache, number, kind, context):
            if context.retrieved and number == 0 and kind == KEYS and piece.frame == len(context.shared):
                sink = cache.layers[0].pages.read([0])[0]
                read.append((torch.cat([*piece.parts], dim=1), cache.retrieved(0, context.retrieved)[0], sink))
            yield piece

    monkeypatch.setattr(WanKVCache, "_pieces", watched)
    memory = ATTENTION.model_copy(update={"keys": "average", "alignment": 0.35})
    list(story_blocks(backbone, memory))
    assert len(read) > 4
    for keys, stored, sink in read:
        assert not torch.equal(keys, stored)
        torch.testing.assert_close(keys, aligned(stored, sink, 0.35))


def test_alignment_needs_a_sink() -> None:
    with pytest.raises(ValidationError, match="alignment needs a sink"):
        Nearest(sink=0, alignment=0.35)
    assert Nearest(sink=0).alignment == 0


def test_by_default_nothing_is_averaged_observed_or_aligned(backbone: WatchedBackbone) -> None:
    for memory in (SlidingWindow(window=8, sink=1), Nearest(window=8, sink=1, retrieved=3)):
        blocks = iter(story_blocks(backbone, memory))
        next(blocks)
        cache = backbone.sessions[-1].cache
        assert cache.alignment == 0 and memory.sink_decay is None
        assert all(layer.observer is None for layer in cache.layers)


def test_rotation_is_undone_exactly_where_it_is_observed() -> None:
    table = torch.view_as_real(torch.polar(torch.ones(1, 6, 1, 2), torch.randn(1, 6, 1, 2)))
    query = torch.randn(1, 6, 2, 4)
    torch.testing.assert_close(rotate(rotate(query, table), table * table.new_tensor((1, -1))), query)
