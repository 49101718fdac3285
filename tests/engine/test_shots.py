"""Switches, cuts, masks, references and given openings under the loop, with the small random backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SHAPE, WatchedBackbone, latents_of
from llrag_cli.cache.context import Context
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.memory.context import Stretch, recache_of
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import (
    STRATEGIES,
    MemoryConfig,
    Nearest,
    RetrievalMemory,
    SlidingWindow,
    fields_for,
    parse_memory,
)
from llrag_cli.models.wan.transformer import WanSession
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

NATIVE = SlidingWindow(window=8, sink=1)
RETRIEVING = Nearest(window=8, sink=1, retrieved=3, guard=1)
RETRIEVALS = [name for name, kind in STRATEGIES.items() if issubclass(kind, RetrievalMemory) and name != "own"]
PROMPTS = torch.randn(4, 1, 5, 8, generator=torch.Generator().manual_seed(1))


def of_strategy(name: str, **changes: Any) -> MemoryConfig:
    content = fields_for(RETRIEVING.model_dump(), name) | ({"threshold": 0.5} if name == "gate" else {})
    return parse_memory(content | changes)


def shot(
    backbone: WatchedBackbone, memory: MemoryConfig, *, frames: int = 36, block: int = 3, **more: Any
) -> list[Block]:
    """A video with the changes given as ``changes``."""
    prompt = more.pop("prompt", PROMPTS[0])
    settings: dict[str, Any] = {"noise": AddressedNoise(0, range(len(prompt)))} | more
    schedule = FlowMatchSchedule(steps=[1000, 500], shift=5.0, first_steps=more.pop("first_steps", None))
    settings.pop("first_steps", None)
    return list(
        rollout(
            backbone,
            prompt,
            frames=frames,
            shape=SHAPE,
            block=block,
            schedule=schedule,
            memory=memory,
            history=History(average_pool),
            **settings,
        )
    )


def contexts(backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Context]]:
    """What blocks and recaches attend to from now on."""
    seen: list[tuple[int, Context]] = []
    set_context = WanSession.set_context

    def watched(session: WanSession, context: Context, *, start: int, **size: int) -> None:
        seen.append((start, context))
        set_context(session, context, start=start, **size)

    monkeypatch.setattr(WanSession, "set_context", watched)
    return seen


REPEATABLE = [name for name in RETRIEVALS if name != "random"]  # it draws over all frames of the video


@pytest.mark.parametrize("memory", [NATIVE, *map(of_strategy, REPEATABLE)], ids=["none", *REPEATABLE])
@pytest.mark.parametrize("block", [1, 3])
def test_a_cut_that_keeps_nothing_is_a_video_of_its_own(
    backbone: WatchedBackbone, memory: MemoryConfig, block: int
) -> None:
    cut = 15
    change = Change(PROMPTS[1], cut=True, keeps_sink=False, remembered=(), noise=AddressedNoise(7))
    whole = latents_of(
        shot(backbone, memory, frames=cut + 24, block=block, changes={cut // block: change}, first_steps=[1000, 750])
    )
    alone = latents_of(
        shot(
            backbone,
            memory,
            frames=24,
            block=block,
            prompt=PROMPTS[1],
            noise=AddressedNoise(7),
            first_steps=[1000, 750],
        )
    )
    assert torch.equal(whole[:, cut:], alone)


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("strategy", RETRIEVALS)
def test_exact_tiers_agree_over_shots_and_references(backbone: WatchedBackbone, tier: str, strategy: str) -> None:
    def made(archive: str) -> list[Block]:
        return shot(
            backbone,
            of_strategy(strategy, archive=archive),
            frames=45,
            changes={
                3: Change(PROMPTS[1]),
                6: Change(PROMPTS[2], cut=True, keeps_sink=False),
                9: Change(PROMPTS[3], cut=True, remembered=(range(0, 9), range(-4, -1)), pinned=(-1,)),
                12: Change(PROMPTS[1], recache="renew"),
            },
            references=references(),
            pinned=1,
        )

    device, other = made("device"), made(tier)
    assert torch.equal(latents_of(device), latents_of(other))
    assert [each.retrieved for each in device] == [each.retrieved for each in other]
    assert device[9].retrieved[0] and len(device[9].retrieved[0]) == 2  # one place is taken by the pinned frame


def references() -> list[Reference]:
    """One of three frames, and one of one, which can be pinned."""
    noise = torch.randn(1, 4, *SHAPE, generator=torch.Generator().manual_seed(5))
    return [Reference(noise[:, :3], PROMPTS[2]), Reference(noise[:, 3:], PROMPTS[3])]


def test_a_kept_sink_comes_first_on_a_new_clock(backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = contexts(backbone, monkeypatch)
    shot(backbone, NATIVE, frames=30, changes={5: Change(PROMPTS[1], cut=True)})
    by_start = dict(seen)
    assert by_start[12].shared == (0, 8, 9, 10, 11) and by_start[12].shared_times == (0, 8, 9, 10, 11)
    assert by_start[15] == Context(shared=(0,), shared_times=(0,), start_time=1)
    assert by_start[18] == Context(shared=(0, 15, 16, 17), shared_times=(0, 1, 2, 3), start_time=4)
    assert by_start[24].shared == (0, 20, 21, 22, 23)
    assert by_start[24].shared_times == (0, 6, 7, 8, 9) and by_start[24].start_time == 10


def test_a_sink_that_is_dropped_is_replaced(backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = contexts(backbone, monkeypatch)
    shot(backbone, NATIVE, frames=30, changes={5: Change(PROMPTS[1], cut=True, keeps_sink=False)})
    by_start = dict(seen)
    assert by_start[15] == Context(shared=(), shared_times=(), start_time=0)
    assert by_start[24].shared == (15, 20, 21, 22, 23) and by_start[24].shared_times == (0, 5, 6, 7, 8)


def test_cuts_before_the_sink_is_complete() -> None:
    stretch = Stretch().cut(1, keep=3)  # one frame so far
    assert (stretch.lead, [stretch.frame(time) for time in range(4)]) == (1, [0, 1, 2, 3])
    again = stretch.cut(2, keep=3)
    assert (again.lead, [again.frame(time) for time in range(4)]) == (2, [0, 1, 2, 3])
    assert Stretch().cut(9, keep=0) == Stretch(origin=9, lead=0, kept=9)
    assert Stretch(sink=4).cut(20, keep=2) == Stretch(origin=20, lead=2, kept=4)


@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
def test_a_kept_sink_is_never_computed_again(memory: MemoryConfig) -> None:
    keep = recache_of(memory, start=4, lead=1)
    assert keep is not None and keep.first == 1 and keep.context.shared == (0,) and keep.sink_start == 0
    renew = recache_of(memory, start=4, lead=1, rule="renew")
    assert renew is not None and renew.first == 1 and renew.context.shared == () and renew.sink_start == 1
    assert recache_of(memory, start=1, lead=1) is None  # nothing but the sink is there
    assert recache_of(memory, start=4, lead=1, rule="none") is None
    late = recache_of(memory, start=20, lead=1)
    assert late is not None and late.first == 13


@pytest.mark.parametrize("strategy", RETRIEVALS)
def test_every_strategy_obeys_what_a_shot_may_remember(backbone: WatchedBackbone, strategy: str) -> None:
    allowed = (range(3, 9), range(-4, -1))
    blocks = shot(
        backbone,
        of_strategy(strategy),
        frames=60,
        changes={4: Change(PROMPTS[1], cut=True), 8: Change(PROMPTS[2], cut=True, remembered=allowed)},
        references=references(),
    )
    first = {frame for each in blocks[:4] for row in each.retrieved for frame in row}
    assert first <= {*range(-4, 12)}
    assert first & {*range(-4, 0)} or strategy == "successor"  # the references are too short to have successors
    for each in blocks[8:]:
        for frame in (frame for row in each.retrieved for frame in row):
            own = 24 <= frame < each.start - 8 + 1
            assert own or any(frame in span for span in allowed)
    assert strategy == "successor" or all(len(row) == 3 for each in blocks[8:] for row in each.retrieved)


def test_a_successor_is_of_the_same_picture(backbone: WatchedBackbone) -> None:
    memory = of_strategy("successor", retrieved=1, guard=0)
    blocks = shot(
        backbone,
        memory,
        frames=60,
        changes={n: Change(PROMPTS[n % 4], cut=True, remembered=(range(0, 3 * n),)) for n in (3, 6, 9)},
    )
    ends = {*range(6, 9), *range(15, 18), *range(24, 27)}  # frames whose successors are of another picture
    retrieved = {frame for each in blocks for row in each.retrieved for frame in row}
    assert retrieved and not retrieved & {frame + 3 for frame in ends}


def test_references_pass_once_and_pinned_frames_stay(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = contexts(backbone, monkeypatch)
    blocks = shot(
        backbone,
        of_strategy("nearest", archive="host"),
        frames=45,
        changes={0: Change(PROMPTS[0], pinned=(-1,))},
        references=references(),
        pinned=1,
    )
    assert [start for start, _ in seen if start < 0] == [-4, -1]
    last = dict(seen)[42]
    assert last.shared[0] == -1 and last.shared_times[0] == 0 and last.retrieved_count == 2
    assert last.frame_count == 5 and blocks[-1].retrieved[0] == [*last.retrieved[0]]
    plain = shot(backbone, of_strategy("nearest", archive="host"), frames=45, references=references())
    assert not torch.equal(latents_of(blocks), latents_of(plain))


@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
@pytest.mark.parametrize("at", [0, 4])
def test_given_blocks_open_a_shot(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch, memory: MemoryConfig, at: int
) -> None:
    passes: dict[int, list[float]] = {}
    update, flow = WanSession.update_cache, WanSession.flow

    def watched(session: WanSession, latents: Tensor, timestep: float = 0.0, *rest: Any) -> None:
        passes.setdefault(session._start, []).append(timestep)
        update(session, latents, timestep, *rest)

    def flowing(session: WanSession, noisy: Tensor, timestep: Tensor) -> Tensor:
        passes.setdefault(session._start, []).append(round(float(timestep)))
        return flow(session, noisy, timestep)

    monkeypatch.setattr(WanSession, "update_cache", watched)
    monkeypatch.setattr(WanSession, "flow", flowing)
    given = torch.randn(1, 6, *SHAPE, generator=torch.Generator().manual_seed(9))
    change = Change(PROMPTS[1], cut=True, keeps_sink=False, remembered=(), given=given)
    latents = latents_of(
        shot(backbone, memory, frames=24, changes={at: change}, first_steps=[1000, 750, 500], context_timestep=50.0)
    )
    start = 3 * at
    assert torch.equal(latents[:, start : start + 6], given)
    assert passes[start] == passes[start + 3] == [0.0]
    assert len(passes[start + 6]) == 4 and passes[start + 6][-1] == 50.0  # the steps of a first block
    assert len(passes[start + 9]) == 3


def test_a_batch_retrieves_for_each_video(backbone: WatchedBackbone) -> None:
    changes = {6: Change(PROMPTS[1].expand(3, -1, -1), cut=True)}
    together = shot(
        backbone,
        RETRIEVING,
        prompt=PROMPTS[0].expand(3, -1, -1),
        noise=AddressedNoise([4, 5, 6], [0, 0, 0]),
        changes=changes,
    )
    for row, seed in enumerate((4, 5, 6)):
        alone = shot(backbone, RETRIEVING, noise=AddressedNoise(seed), changes={6: Change(PROMPTS[1], cut=True)})
        torch.testing.assert_close(latents_of(together)[row : row + 1], latents_of(alone), atol=2e-4, rtol=2e-4)
        assert [each.retrieved[row] for each in together if each.retrieved] == [
            each.retrieved[0] for each in alone if each.retrieved
        ]
