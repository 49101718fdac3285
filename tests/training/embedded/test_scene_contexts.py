from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from conftest import SHAPE
from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.memory.context import context_of, recache_of
from llrag_cli.models.wan.transformer import WanBackbone, WanSession
from llrag_cli.training.embedded.scene_contexts import Rows, cut_rows, memory_of, switch_rows
from llrag_cli.training.embedded.teacher_forcing import TeacherForced, lay_out

SIZE = {"block": 3, "height": SHAPE[1], "width": SHAPE[2]}
TIMESTEP = torch.tensor(700.0)


def flows_of(transformer: WanTransformer3DModel, rows: Rows, latents: Tensor, noisy: Tensor, prompts: Tensor) -> Tensor:
    """The flow [R, 3, C, h, w] of the noisy rows of one clip, in one pass."""
    every = [*rows.clean, *rows.noisy]
    stacked = [latents[row.start : row.start + 3] for row in rows.clean]
    stacked += [noisy[row.start : row.start + 3] for row in rows.noisy]
    times = torch.tensor([0.0] * len(rows.clean) + [700.0] * len(rows.noisy))
    which = torch.tensor([row.prompt % len(prompts) for row in every])
    layout = lay_out([[row.row for row in every]], block=3)
    with torch.no_grad():
        flow = TeacherForced(transformer)(
            torch.stack(stacked)[None], times[None], prompts[None], layout, clean=len(rows.clean), prompt_of=which[None]
        )
    return flow[0, len(rows.clean) :]


def start(transformer: WanTransformer3DModel, prompt: Tensor, frames: int) -> WanSession:
    return WanBackbone(transformer).start(prompt[None], WanKVCache(layers=2, sink=1, recent=None, frames=frames))


@pytest.mark.parametrize("retrieved", [0, 4, 6])
@pytest.mark.parametrize("switch", [3, 6])
def test_a_switch_is_trained_as_it_is_generated(
    transformer: WanTransformer3DModel, switch: int, retrieved: int
) -> None:
    """The same contexts, prompts and recomputed keys as in a rollout, from the unmasked pass to the last block."""
    torch.manual_seed(switch + retrieved)
    blocks, memory = switch + 4, memory_of(retrieved=retrieved)
    latents, noisy = torch.randn(3 * blocks, *SHAPE), torch.randn(3 * blocks, *SHAPE)
    prompts, keys = torch.randn(2, 5, 8), F.normalize(torch.randn(3 * blocks, 4), dim=-1)
    # the rows are built twice with the same draws; what was retrieved is read back from the rows
    rows = switch_rows(random.Random(3), keys, shots=(0, switch, blocks), block=3, memory=memory, copies=(1, 1, 1, 1))
    flows = flows_of(transformer, rows, latents, noisy, prompts)
    frame_of = {3 * index + place: row.start + place for index, row in enumerate(rows.clean) for place in range(3)}
    by_start = {row.start: row.row for row in (*rows.clean, *rows.noisy) if row.prompt == 1 and row.start >= 3 * switch}
    by_start |= {row.start: row.row for row in rows.clean if row.prompt == 0}
    session = start(transformer, prompts[0], 3 * blocks)
    for index in range(blocks):
        first = 3 * index
        if index == switch:
            recache = recache_of(memory, start=first)
            assert recache is not None
            session.set_prompt(prompts[1][None])
            late = by_start[first].start_time - context_of(memory, start=first, block=3).start_time
            again = recache.context
            moved = Context(again.shared, again.shared_times, again.start_time + late)
            session.recache(moved, latents[None, recache.first : first], start=recache.first)
        context = context_of(memory, start=first, block=3)
        if first in by_start:
            row = by_start[first]
            frames = tuple(frame_of[frame] for frame in row.frames)
            assert frames[: len(context.shared)] == context.shared
            assert set(row.times[len(context.shared) :]) <= {0}
            context = Context(frames, row.times, row.start_time)
        session.set_context(context, start=first, **SIZE)
        if index >= switch:
            flow = session.flow(noisy[None, first : first + 3], TIMESTEP)[0]
            torch.testing.assert_close(flow, flows[index - switch], atol=1e-4, rtol=1e-4)
        session.update_cache(latents[None, first : first + 3])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("retrieved", [0, 4])
def test_a_cut_begins_a_new_clock_and_sees_what_it_may_remember(seed: int, retrieved: int) -> None:
    torch.manual_seed(seed)
    keys = F.normalize(torch.randn(33, 4), dim=-1)
    memory = memory_of(retrieved=retrieved)
    copies = ((1, 1, 0), (1, 1, 1, 1))
    rows = cut_rows(
        random.Random(seed), keys, shots=(0, 4, 7, 11), block=3, memory=memory, change="elsewhere", copies=copies
    )
    frame_of = {3 * index + place: row.start + place for index, row in enumerate(rows.clean) for place in range(3)}
    assert len(rows.clean) == 10 and len(rows.noisy) == 6
    for row in rows.noisy:
        begin = 12 if row.start < 21 else 21
        frames = [frame_of[frame] for frame in row.row.frames]
        kept = next((f for f, t in zip(frames, row.row.times, strict=True) if f < begin and t == 0), None)
        own = {frame: time for frame, time in zip(frames, row.row.times, strict=True) if frame >= begin}
        offset = row.row.start_time - min(row.start - begin, 9)
        assert offset in (0, 1) and (offset == 0 or kept is not None or row.start - begin >= 9)
        assert all(time == 0 for f, time in zip(frames, row.row.times, strict=True) if f < begin)
        assert all(0 <= time < row.row.start_time for time in own.values())
        assert retrieved or len(frames) == len(own) + offset
        if row.start == begin:
            assert not own


def test_a_picture_is_seen_alone(transformer: WanTransformer3DModel) -> None:
    """A reference of one frame has the keys of a block of one frame, whatever else is in its row."""
    for seed in range(200):
        rows = cut_rows(
            random.Random(seed),
            F.normalize(torch.randn(33, 4), dim=-1),
            shots=(0, 4, 7, 11),
            block=3,
            memory=memory_of(retrieved=4),
            change="elsewhere",
            copies=((1, 1, 0), (1, 1, 1, 1)),
        )
        if rows.clean[0].row.own == range(1) and any(0 in row.row.frames for row in rows.noisy if row.start == 21):
            break
    latents, noisy, prompts = torch.randn(33, *SHAPE), torch.randn(33, *SHAPE), torch.randn(4, 5, 8)
    flows = flows_of(transformer, rows, latents, noisy, prompts)
    latents[1:3] = 5.0
    torch.testing.assert_close(flows_of(transformer, rows, latents, noisy, prompts), flows)
