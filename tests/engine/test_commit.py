"""What the clean pass attends to, by the memory's commit rule, under the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SHAPE, WatchedBackbone, latents_of
from llrag_cli.cache.context import Context
from llrag_cli.cache.tiers import EXACT, TIERS
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import MemoryConfig, Nearest, SlidingWindow
from llrag_cli.models.wan.transformer import WanSession
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

NATIVE = SlidingWindow(window=8, sink=2)
RETRIEVING = Nearest(window=8, sink=1, retrieved=3, guard=1)
MEMORIES = pytest.mark.parametrize("memory", [NATIVE, RETRIEVING], ids=["none", "nearest"])
RULES = pytest.mark.parametrize(
    "rule",
    [{"commit": "recent"}, {"commit": "recent", "commit_frames": 5}, {"commit": "self"}],
    ids=["recent", "recent-5", "self"],
)
PROMPTS = torch.randn(4, 1, 5, 8, generator=torch.Generator().manual_seed(1))
REFERENCES = torch.randn(1, 4, *SHAPE, generator=torch.Generator().manual_seed(5))


def under(memory: MemoryConfig, **rule: Any) -> MemoryConfig:
    return type(memory).model_validate(memory.model_dump() | rule)


def video(backbone: WatchedBackbone, memory: MemoryConfig, *, block: int = 3, **more: Any) -> list[Block]:
    prompt = more.pop("prompt", PROMPTS[0])
    settings: dict[str, Any] = {"frames": 36, "noise": AddressedNoise(0, range(len(prompt)))} | more
    schedule = FlowMatchSchedule(steps=[1000, 500], shift=5.0)
    return list(
        rollout(
            backbone,
            prompt,
            shape=SHAPE,
            block=block,
            schedule=schedule,
            memory=memory,
            history=History(average_pool),
            **settings,
        )
    )


def story() -> dict[int, Change]:
    """Two changes of the prompt, two cuts."""
    return {
        4: Change(PROMPTS[1]),
        7: Change(PROMPTS[2], cut=True),
        10: Change(PROMPTS[3], recache="renew"),
        12: Change(PROMPTS[1], cut=True, keeps_sink=False),
    }


Passes = list[tuple[str, int, Context]]  # what passed, from which frame on, and what it attended to


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """The passes of sessions from now on."""
    seen: Passes = []
    current: dict[WanSession, Context] = {}

    def watch(name: str, call: Callable[..., Any]) -> None:
        def watched(session: WanSession, first: Any, *rest: Any, **options: Any) -> Any:
            if name == "set_context":
                current[session] = first
            else:
                seen.append((name, session._start, current[session]))
            return call(session, first, *rest, **options)

        monkeypatch.setattr(WanSession, name, watched)

    for name in ("set_context", "flow", "update_cache"):
        watch(name, getattr(WanSession, name))
    return seen


@pytest.mark.parametrize("block", [1, 3])
@MEMORIES
@RULES
def test_clean_passes_read_the_newest_frames_and_denoising_what_it_always_reads(
    backbone: WatchedBackbone, passes: Passes, memory: MemoryConfig, rule: dict[str, Any], block: int
) -> None:
    video(backbone, memory, block=block)
    usual = [context for name, _, context in passes if name == "flow"]
    assert [context for name, _, context in passes if name == "update_cache"] == usual[1::2]
    passes.clear()
    committing = under(memory, **rule)
    video(backbone, committing, block=block)
    denoising = [context for name, _, context in passes if name == "flow"]
    reach = block if committing.commit == "self" else committing.commit_frames or 8
    assert [(each.shared, each.shared_times, each.start_time) for each in denoising] == [
        (each.shared, each.shared_times, each.start_time) for each in usual
    ]
    if memory is RETRIEVING:
        assert {each.retrieved_count for each in denoising} == {0, 1, 2, 3} if block == 1 else {0, 2, 3}
    starts = set()
    for name, start, context in passes:
        if name == "update_cache":
            starts.add(start)
            assert context.shared == tuple(range(max(0, start + block - reach), start))
            assert context.frame_count + block == min(start + block, reach)
            own = start if memory is NATIVE else min(start, 8 - block)
            assert context.start_time == own
            assert context.shared_times == tuple(frame - start + own for frame in context.shared)
            assert min(context.shared_times, default=0) >= 0 and len(context.hidden) == 0
    assert starts == set(range(0, 36, block))


@MEMORIES
@RULES
def test_a_rule_changes_the_video(backbone: WatchedBackbone, memory: MemoryConfig, rule: dict[str, Any]) -> None:
    plain, other = (latents_of(video(backbone, each)) for each in (memory, under(memory, **rule)))
    assert torch.equal(plain[:, :3], other[:, :3])
    assert not torch.allclose(plain[:, -3:], other[:, -3:], atol=1e-3)


def test_all_newest_frames_without_a_sink_are_the_plain_window(backbone: WatchedBackbone) -> None:
    plain = SlidingWindow(window=8, sink=0)
    assert torch.equal(
        latents_of(video(backbone, plain)), latents_of(video(backbone, under(plain, commit="recent", commit_frames=8)))
    )
    endless = SlidingWindow(window=None, sink=0)
    committing = under(endless, commit="recent", commit_frames=36)
    assert torch.equal(latents_of(video(backbone, endless)), latents_of(video(backbone, committing)))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("tier", [tier for tier in EXACT if tier != "device"])
@RULES
def test_exact_tiers_agree(backbone: WatchedBackbone, tier: str, rule: dict[str, Any], block: int) -> None:
    """On the device every frame has a page of its own, so pages that were overwritten too early would show."""

    def made(archive: str) -> Tensor:
        changes = {3 * at // block: change for at, change in story().items()}
        references = [Reference(REFERENCES[:, :3], PROMPTS[2]), Reference(REFERENCES[:, 3:], PROMPTS[3])]
        memory = under(RETRIEVING, archive=archive, **rule)
        return latents_of(video(backbone, memory, block=block, frames=45, changes=changes, references=references))

    assert torch.equal(made("device"), made(tier))


@pytest.mark.parametrize("tier", TIERS)
@RULES
def test_a_video_does_not_depend_on_its_batch(backbone: WatchedBackbone, tier: str, rule: dict[str, Any]) -> None:
    memory = under(RETRIEVING, archive=tier, **rule)
    together = video(
        backbone,
        memory,
        prompt=PROMPTS[0].expand(2, -1, -1),
        noise=AddressedNoise([4, 5], [0, 0]),
        changes={6: Change(PROMPTS[1].expand(2, -1, -1))},
    )
    alone = video(backbone, memory, noise=AddressedNoise(5), changes={6: Change(PROMPTS[1])})
    torch.testing.assert_close(latents_of(together)[1:], latents_of(alone), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("tier", [None, *TIERS])
@RULES
def test_resuming_replays_the_clean_passes(backbone: WatchedBackbone, tier: str | None, rule: dict[str, Any]) -> None:
    memory = under(NATIVE, **rule) if tier is None else under(RETRIEVING, archive=tier, **rule)
    whole = latents_of(video(backbone, memory, frames=45, changes=story()))
    for known in (15, 24, 33):
        again = video(backbone, memory, frames=45, changes=story(), initial_latents=whole[:, :known])
        assert torch.equal(latents_of(again), whole)


def test_what_saw_itself_alone_is_recomputed_exactly(backbone: WatchedBackbone) -> None:
    """The tier `recompute` is approximate under the other rules."""

    def distance(**rule: Any) -> float:
        device, other = (
            latents_of(
                video(backbone, under(RETRIEVING, archive=tier, **rule), frames=45, changes={9: Change(PROMPTS[1])})
            )
            for tier in ("device", "recompute")
        )
        return float((device - other).abs().max())

    assert distance(commit="self") < 1e-3
    assert distance(commit="recent") > 0.01
    assert distance() > 0.01


# --- switches and cuts ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [NATIVE, Nearest(window=8, sink=2, retrieved=3, guard=1)], ids=["none", "nearest"])
@pytest.mark.parametrize("at", [2, 6])
def test_blocks_that_saw_themselves_alone_are_not_changed_by_the_same_prompt(
    backbone: WatchedBackbone, memory: MemoryConfig, at: int
) -> None:
    """With the rule `full` they are, because the pass of a switch has no mask."""
    alone = under(memory, commit="self")
    plain, switched = (
        latents_of(video(backbone, alone, changes=changes)) for changes in ({}, {at: Change(PROMPTS[0])})
    )
    torch.testing.assert_close(plain, switched, atol=1e-4, rtol=1e-4)
    other = latents_of(video(backbone, alone, changes={at: Change(PROMPTS[1])}))
    assert not torch.allclose(plain[:, -3:], other[:, -3:], atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"commit": "full"}, [(15, 6, (0, 1))]),
        ({"commit": "recent"}, [(13, 8, ())]),
        ({"commit": "recent", "commit_frames": 3}, [(15, 6, ())]),
        ({"commit": "self"}, [(15, 3, ()), (18, 3, ())]),
    ],
    ids=["full", "recent", "recent-3", "self"],
)
@pytest.mark.parametrize("memory", [NATIVE, Nearest(window=8, sink=2, retrieved=3)], ids=["none", "nearest"])
def test_a_switch_computes_again_what_later_passes_read(
    backbone: WatchedBackbone,
    monkeypatch: pytest.MonkeyPatch,
    memory: MemoryConfig,
    rule: dict[str, Any],
    expected: list[tuple[int, int, tuple[int, ...]]],
) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    times: list[int] = []
    recache = WanSession.recache

    def watched(session: WanSession, context: Context, latents: Tensor, *, start: int, timestep: float) -> None:
        seen.append((start, latents.shape[1], context.shared))
        times.append(context.start_time)
        recache(session, context, latents, start=start, timestep=timestep)

    monkeypatch.setattr(WanSession, "recache", watched)
    video(backbone, under(memory, **rule), frames=24, changes={7: Change(PROMPTS[1])})
    assert seen == expected
    shift = 0 if memory is NATIVE else 13  # of the first slot of a full window
    assert times == [start - shift for start, _, _ in expected]


@MEMORIES
@RULES
def test_a_cut_that_keeps_nothing_is_a_video_of_its_own(
    backbone: WatchedBackbone, memory: MemoryConfig, rule: dict[str, Any]
) -> None:
    committing = under(memory, **rule)
    change = Change(PROMPTS[1], cut=True, keeps_sink=False, remembered=(), noise=AddressedNoise(7))
    whole = latents_of(video(backbone, committing, frames=39, changes={5: change}))
    alone = latents_of(video(backbone, committing, frames=24, prompt=PROMPTS[1], noise=AddressedNoise(7)))
    assert torch.equal(whole[:, 15:], alone)


@MEMORIES
def test_a_sink_that_a_cut_has_kept_is_not_read_by_clean_passes(
    backbone: WatchedBackbone, passes: Passes, memory: MemoryConfig
) -> None:
    video(backbone, under(memory, commit="recent"), frames=27, changes={5: Change(PROMPTS[1], cut=True)})
    read = {start: context for name, start, context in passes if name == "update_cache"}
    assert read[15].shared == () and read[15].start_time == memory.sink
    assert read[18].shared == (15, 16, 17)
    assert read[24].shared == (19, 20, 21, 22, 23)


@pytest.mark.parametrize(("rule", "read"), [("full", (-4, -3, -2)), ("recent", (-4, -3, -2)), ("self", ())])
def test_references_are_stored_by_the_rule(
    backbone: WatchedBackbone, passes: Passes, rule: str, read: tuple[int, ...]
) -> None:
    video(backbone, under(RETRIEVING, commit=rule), frames=6, references=[Reference(REFERENCES, PROMPTS[2])])
    contexts = {start: context for name, start, context in passes if name == "update_cache" and start < 0}
    assert contexts[-4].shared == () and contexts[-1].shared == read
