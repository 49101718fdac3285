"""Properties of the loop, on a small backbone with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch

from conftest import SHAPE, WatchedBackbone, Write, latents_of
from llrag_cli.cache.kv import KEYS, VALUES
from llrag_cli.cache.sharing import Sharing
from llrag_cli.engine.rollout import Block, retrieve, rollout
from llrag_cli.engine.shots import Change, Cursor
from llrag_cli.memory.context import retrievable
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import (
    STRATEGIES,
    MemoryConfig,
    Nearest,
    Prompt,
    RetrievalMemory,
    SlidingWindow,
    fields_for,
    parse_memory,
)
from llrag_cli.models.wan.transformer import WanSession, _bound
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

NATIVE = SlidingWindow(window=6, sink=1)
RETRIEVING = Nearest(window=8, sink=1, retrieved=3, guard=1)
RETRIEVAL = [name for name, strategy in STRATEGIES.items() if issubclass(strategy, RetrievalMemory) and name != "own"]


def under(strategy: str) -> MemoryConfig:
    """The same memory with another strategy; a gate is set where some frames pass and some do not."""
    content = fields_for(RETRIEVING.model_dump(), strategy)
    return parse_memory(content | ({"threshold": 0.5} if strategy == "gate" else {}))


def timed(rule: str) -> MemoryConfig:
    """The same memory with another rule for the times of retrieved frames."""
    return parse_memory(RETRIEVING.model_dump() | {"times": rule})


@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
def test_same_seed_same_bytes(write: Write, memory: MemoryConfig) -> None:
    first, second = latents_of(write(memory)), latents_of(write(memory))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, latents_of(write(memory, seed=1)))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
def test_a_video_does_not_depend_on_its_batch(write: Write, memory: MemoryConfig, block: int) -> None:
    together = write(memory, batch=3, frames=21, block=block)
    alone = write(memory, samples=(2,), frames=21, block=block)
    torch.testing.assert_close(latents_of(together)[2:], latents_of(alone), atol=1e-4, rtol=1e-4)
    assert [block.retrieved[2:] for block in together] == [block.retrieved for block in alone]


def test_videos_of_a_batch_retrieve_their_own_frames(write: Write) -> None:
    blocks = write(RETRIEVING, batch=3, frames=48)
    assert any(len({tuple(row) for row in block.retrieved}) > 1 for block in blocks)


def test_the_order_of_a_batch_is_irrelevant(write: Write) -> None:
    forward, backward = write(RETRIEVING, samples=(0, 1, 2)), write(RETRIEVING, samples=(2, 1, 0))
    torch.testing.assert_close(latents_of(forward), latents_of(backward).flip(0), atol=1e-4, rtol=1e-4)


def test_native_is_the_plain_window_bit_for_bit(write: Write) -> None:
    """Whatever keys are kept and however many frames could be retrieved, the plain window does not change."""

    def other_keys(latents: torch.Tensor) -> torch.Tensor:
        return latents.flatten(1)[:, :7] - 3

    plain = latents_of(write(NATIVE, encode=average_pool))
    assert torch.equal(plain, latents_of(write(NATIVE, encode=other_keys)))


def test_a_window_that_never_fills_is_no_window(write: Write) -> None:
    wide = SlidingWindow(window=30, sink=1)
    endless = SlidingWindow(window=None, sink=1)
    assert torch.equal(latents_of(write(wide, frames=15)), latents_of(write(endless, frames=15)))


def test_without_memory_retrieval_is_native_until_the_window_rolls(write: Write) -> None:
    native = latents_of(write(SlidingWindow(window=9, sink=1), frames=15))
    none = latents_of(write(Nearest(window=9, sink=1, retrieved=0), frames=15))
    assert torch.equal(native[:, :9], none[:, :9])
    assert not torch.equal(native[:, 9:], none[:, 9:])


def test_retrieved_frames_change_the_video(write: Write) -> None:
    retrieved = latents_of(write(RETRIEVING, frames=30))
    blind = latents_of(write(RETRIEVING.model_copy(update={"guard": 100}), frames=30))
    assert torch.equal(retrieved[:, :9], blind[:, :9])
    assert not torch.allclose(retrieved[:, 15:], blind[:, 15:], atol=1e-3)


def test_the_times_of_retrieved_frames_change_the_video_once_some_are_retrieved(write: Write) -> None:
    collapsed = write(RETRIEVING, frames=30)
    first = next(block.start for block in collapsed if block.retrieved)
    videos = {rule: latents_of(write(timed(rule), frames=30)) for rule in ("collapsed", "ordered", "interpolated")}
    assert torch.equal(videos["collapsed"], latents_of(collapsed))
    for one, other in combinations(videos.values(), 2):
        assert torch.equal(one[:, :first], other[:, :first])
        assert not torch.allclose(one[:, 21:], other[:, 21:], atol=1e-3)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("rule", ["ordered", "interpolated"])
def test_times_are_those_of_each_video_of_a_batch(write: Write, rule: str, block: int) -> None:
    together = write(timed(rule), batch=3, frames=30, block=block)
    assert any(len({tuple(row) for row in each.retrieved}) > 1 for each in together)
    for row in range(3):
        alone = write(timed(rule), samples=(row,), frames=30, block=block)
        torch.testing.assert_close(latents_of(together)[row : row + 1], latents_of(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strategy", RETRIEVAL)
def test_every_strategy_retrieves_what_it_may_for_each_video_alone(write: Write, strategy: str) -> None:
    memory = under(strategy)
    together, alone = write(memory, batch=3, frames=30), write(memory, samples=(2,), frames=30)
    torch.testing.assert_close(latents_of(together)[2:], latents_of(alone), atol=1e-4, rtol=1e-4)
    for block in together:
        pool = retrievable(start=block.start, window=8, sink=1, guard=1)
        matched = len(pool) - (3 if strategy == "successor" else 0)  # the newest candidates have no successor
        assert all(len(row) == max(0, min(3, matched)) and set(row) <= set(pool) for row in block.retrieved)
        assert len(block.retrieved) == (3 if pool else 0)


def test_strategies_differ(write: Write) -> None:
    chosen = {
        strategy: tuple(map(tuple, write(under(strategy), frames=36)[-1].retrieved))
        for strategy in RETRIEVAL
        if strategy != "gate"
    }
    assert len(set(chosen.values())) == len(chosen)
    assert chosen["deep-sink"] == ((1, 2, 3),)


def test_random_frames_depend_on_the_seed_and_the_block(write: Write) -> None:
    first, again, other = (write(under("random"), frames=60, seed=seed) for seed in (0, 0, 1))
    assert [block.retrieved for block in first] == [block.retrieved for block in again]
    assert [block.retrieved for block in first] != [block.retrieved for block in other]
    late = [tuple(block.retrieved[0]) for block in first[-6:]]
    assert len(set(late)) == len(late)


@pytest.mark.parametrize("sink", [0, 1, 2, 3])
@pytest.mark.parametrize("window", [4, 5, 7, 12])
def test_any_window_and_sink_run(write: Write, window: int, sink: int) -> None:
    memory = SlidingWindow(window=window, sink=sink)
    assert latents_of(write(memory, frames=15, block=1 if window - sink < 3 else 3)).isfinite().all()


@pytest.mark.parametrize("retrieved", [4, 5, 6])
def test_a_local_part_shorter_than_the_block_runs(write: Write, retrieved: int) -> None:
    memory = Nearest(window=8, sink=1, retrieved=retrieved, guard=0)
    assert latents_of(write(memory, frames=18)).isfinite().all()


def test_the_cache_holds_no_more_than_the_window(backbone: WatchedBackbone, write: Write) -> None:
    held = []

    def look(block: Block) -> None:
        keys = backbone.sessions[-1].cache.layers[0].pages._keys
        assert keys is not None
        held.append(keys.shape[1])

    write(NATIVE, frames=60, on_block=look)
    assert set(held) == {6}


@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
def test_the_end_of_a_video_frees_what_it_held(backbone: WatchedBackbone, write: Write, memory: MemoryConfig) -> None:
    write(memory)
    assert backbone.sessions[-1].cache.layers == []
    assert _bound.current is None
    assert all(cross.keys is None for cross in backbone._cross_attention)


def test_retrieved_frames_obey_the_guard(write: Write) -> None:
    for block in write(RETRIEVING, frames=60):
        newest = block.start - 8 + 1 - 1 - 1  # start - window + sink - guard - 1
        assert all(1 <= frame <= newest for row in block.retrieved for frame in row)


def continued(
    backbone: WatchedBackbone, initial: torch.Tensor | None, *, given: int | None, memory: MemoryConfig = NATIVE
) -> torch.Tensor:
    """Twelve frames, one a block, with other steps in the first generated block and noisy clean passes."""
    prompt = torch.ones(1, 5, 8)
    own = None if initial is None else initial[:, :given]
    return latents_of(
        list(
            rollout(
                backbone,
                prompt,
                frames=12,
                shape=SHAPE,
                block=1,
                schedule=FlowMatchSchedule(steps=[1000, 500], first_steps=[1000, 750, 500, 250], shift=5.0),
                memory=memory,
                history=History(average_pool),
                noise=AddressedNoise(0),
                context_timestep=100.0,
                initial_latents=initial,
                changes={0: Change(prompt, given=own)},
            )
        )
    )


@pytest.mark.parametrize("given", [0, 2])
def test_steps_and_timesteps_count_from_the_given_frames(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    passes: dict[int, list[float]] = {}
    flow, update_cache = WanSession.flow, WanSession.update_cache

    def watched_flow(session: WanSession, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        passes.setdefault(session._start, []).append(round(float(timestep)))
        return flow(session, noisy, timestep)

    def watched_update(session: WanSession, latents: torch.Tensor, timestep: float, *rest: object) -> None:
        passes.setdefault(session._start, []).append(timestep)
        update_cache(session, latents, timestep, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WanSession, "flow", watched_flow)
    monkeypatch.setattr(WanSession, "update_cache", watched_update)
    initial = torch.randn(1, given, *SHAPE) if given else None
    latents = continued(backbone, initial, given=None)
    assert initial is None or torch.equal(latents[:, :given], initial)
    assert [passes[frame] for frame in range(given)] == [[0.0]] * given
    assert passes[given] == [1000, 938, 833, 625, 100.0]
    assert all(passes[frame] == [1000, 833, 100.0] for frame in range(given + 1, 12))


@pytest.mark.parametrize("memory", [NATIVE, RETRIEVING])
@pytest.mark.parametrize("given", [0, 2])
@pytest.mark.parametrize("known", [2, 3, 9])
def test_latents_generated_earlier_continue_the_same_video(
    backbone: WatchedBackbone, memory: MemoryConfig, given: int, known: int
) -> None:
    initial = torch.randn(1, given, *SHAPE) if given else None
    whole = continued(backbone, initial, given=None, memory=memory)
    assert torch.equal(continued(backbone, whole[:, :known], given=given, memory=memory), whole)
    if known > given:  # as frames of the user's own they are another video
        assert not torch.equal(continued(backbone, whole[:, :known], given=None, memory=memory), whole)


class Watched:
    """Addressed noise that remembers what was asked for."""

    def __init__(self) -> None:
        self.addresses: list[tuple[int, int]] = []
        self._noise = AddressedNoise(0)

    def draw(self, block: int, step: int, shape: Sequence[int]) -> torch.Tensor:
        self.addresses.append((block, step))
        return self._noise.draw(block, step, shape)


def test_each_block_draws_its_own_random_memory(write: Write) -> None:
    noise = Watched()
    blocks = write(under("random"), frames=36, noise=noise)
    retrieving = [block.index for block in blocks if block.retrieved]
    assert len(retrieving) > 5
    assert sorted(block for block, step in noise.addresses if step == -1) == retrieving
    assert {address for address in noise.addresses if address[1] >= 0} == {
        (n, step) for n in range(12) for step in (0, 1)
    }


def test_the_prompt_strategy_drafts_a_block_in_its_first_step(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, int]] = []
    flow = WanSession.flow

    def watched_flow(session: WanSession, noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        passes.append((session._start, round(float(timestep))))
        return flow(session, noisy, timestep)

    monkeypatch.setattr(WanSession, "flow", watched_flow)
    block = write(under("prompt"), frames=30)[-1]
    assert [timestep for start, timestep in passes if start == block.start] == [1000, 1000, 833]


def test_a_draft_is_compared_by_its_last_frame() -> None:
    history = History(average_pool)
    latents = torch.randn(1, 30, 4, 3, 5, generator=torch.Generator().manual_seed(2))
    latents[:, 29] = latents[:, 11]
    history.append(latents)
    draft = torch.cat((latents[:, [3, 5]], 2 * latents[:, 8:9]), dim=1)
    memory = Prompt(window=8, sink=1, retrieved=1)
    cursor = Cursor(memory, AddressedNoise(0), block=3)
    retrieved, similarities = retrieve(
        history, memory, cursor, start=30, draft=lambda: draft, draw=lambda: torch.zeros(1, 30)
    )
    assert retrieved == [[8]] and similarities[0][0] == pytest.approx(1)
    plain, _ = retrieve(history, memory, cursor, start=30, draw=lambda: torch.zeros(1, 30))
    assert plain == [[11]]  # the newest frame is the query


def test_pinned_frames_take_no_room_from_a_memory_that_retrieves_nothing() -> None:
    history = History(average_pool)
    history.append(torch.randn(1, 30, 4, 3, 5, generator=torch.Generator().manual_seed(2)))
    memory = Nearest(window=8, sink=1, retrieved=0)
    cursor = Cursor(memory, AddressedNoise(0), block=3)
    cursor.shot = Change(torch.zeros(1, 5, 8), pinned=(-1,))
    assert retrieve(history, memory, cursor, start=30, draw=lambda: torch.zeros(1, 30)) == ([], [])


@pytest.mark.parametrize(("window", "kept"), [(12, 12), (8, 9), (3, 3)])
def test_latents_are_kept_as_long_as_a_switch_could_compute_them_again(window: int, kept: int) -> None:
    """Whole blocks that reach over the window, and no more."""
    cursor = Cursor(SlidingWindow(window=window, sink=1), AddressedNoise(0), block=3)
    for number in range(9):
        cursor.add(torch.full((1, 3, 4, 3, 5), float(number)))
    held = torch.cat([*cursor._recent], dim=1)
    assert held.shape[1] == kept and held[0, -1, 0, 0, 0] == 8


def test_a_later_prompt_takes_over_at_its_block(backbone: WatchedBackbone) -> None:
    """The frames before its block are those without it, and the very first of its block are others."""
    prompts = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))

    def made(changes: dict[int, Change]) -> torch.Tensor:
        return latents_of(
            list(
                rollout(
                    backbone,
                    prompts[0],
                    frames=24,
                    shape=SHAPE,
                    block=3,
                    schedule=FlowMatchSchedule(steps=[1000, 500], shift=5.0),
                    memory=RETRIEVING,
                    history=History(average_pool),
                    noise=AddressedNoise(0),
                    changes=changes,
                )
            )
        )

    plain = made({})
    for block in (1, 5, 7):
        changed = made({block: Change(prompts[1])})
        same = [torch.equal(changed[:, n], plain[:, n]) for n in range(24)]
        assert same == [n < 3 * block for n in range(24)], block


@pytest.mark.parametrize("sharing", ["values", "all"])
@pytest.mark.parametrize("archive", ["none", "device", "host", "recompute"])
def test_buffers_that_layers_share_change_nothing(
    backbone: WatchedBackbone, write: Write, archive: str, sharing: Sharing
) -> None:
    """Not even where a clean pass attends to other frames than denoising, or a layer to fewer than others."""
    memory: MemoryConfig = NATIVE
    if archive != "none":
        memory = RETRIEVING.model_copy(update={"archive": archive, "commit": "recent", "read_layers": 1})
    plain = latents_of(write(memory, frames=30, batch=2))
    own = backbone.sessions[-1]
    backbone.sharing = sharing
    counts: set[tuple[int, ...]] = set()

    def look(block: Block) -> None:
        layers = backbone.sessions[-1].cache.layers
        counts.add(tuple(len({id(layer.buffers[kind].tensor) for layer in layers}) for kind in (KEYS, VALUES)))

    assert torch.equal(latents_of(write(memory, frames=30, batch=2, on_block=look)), plain)
    assert counts == {(1 if sharing == "all" else backbone.layers, 1)} and backbone.sessions[-1] is not own
