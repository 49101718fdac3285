"""The archive's tiers under the loop: the exact ones write the same video, the others one that is near."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from conftest import SHAPE, WatchedBackbone, Write, latents_of
from llrag_cli import Pipeline, load_config
from llrag_cli.cache import archive
from llrag_cli.cache.kv import KEYS, VALUES
from llrag_cli.cache.rotary import RotaryTables
from llrag_cli.cache.tiers import EXACT, TIERS, Tier
from llrag_cli.cli.hints import hint_for
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change
from llrag_cli.errors import LlragError
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
from llrag_cli.planning import Budget, Part, plan
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

RETRIEVING = Nearest(window=8, sink=1, retrieved=3, guard=1)


def tiered(tier: Tier, memory: MemoryConfig = RETRIEVING) -> MemoryConfig:
    return memory.model_copy(update={"archive": tier})


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize(
    "strategy", [name for name, kind in STRATEGIES.items() if issubclass(kind, RetrievalMemory) and name != "own"]
)
def test_exact_tiers_write_the_same_video_bit_for_bit(write: Write, tier: Tier, strategy: str) -> None:
    content = fields_for(RETRIEVING.model_dump(), strategy)
    memory = parse_memory(content | ({"threshold": 0.5} if strategy == "gate" else {}))
    device = write(memory, batch=2, frames=36)
    other = write(tiered(tier, memory), batch=2, frames=36)
    assert torch.equal(latents_of(device), latents_of(other))
    assert [block.retrieved for block in device] == [block.retrieved for block in other]


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize(("window", "sink", "retrieved"), [(8, 0, 4), (9, 1, 5), (12, 3, 6), (4, 3, 1), (6, 1, 1)])
def test_exact_tiers_agree_for_any_window(
    write: Write, tier: Tier, block: int, window: int, sink: int, retrieved: int
) -> None:
    memory = Nearest(window=window, sink=sink, retrieved=retrieved, guard=0)
    device, other = write(memory, frames=30, block=block), write(tiered(tier, memory), frames=30, block=block)
    assert torch.equal(latents_of(device), latents_of(other))


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_is_deterministic_and_does_not_depend_on_the_batch(write: Write, tier: Tier) -> None:
    first, again = (latents_of(write(tiered(tier), batch=2, frames=36)) for _ in range(2))
    assert torch.equal(first, again)
    alone = latents_of(write(tiered(tier), samples=(1,), frames=36))
    torch.testing.assert_close(first[1:], alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("tier", "bar"), [("host-int8", 0.02), ("recompute", 0.6)])
def test_the_other_tiers_are_near(write: Write, tier: Tier, bar: float) -> None:
    """With random weights every layer mixes strongly, so that this is far more than a trained model shows."""
    device, other = write(RETRIEVING, frames=36), write(tiered(tier), frames=36)
    before = next(block.index for block in device if block.retrieved)
    exact, near = latents_of(device), latents_of(other)
    assert torch.equal(exact[:, : 3 * before], near[:, : 3 * before])
    distance = (exact - near).pow(2).mean().sqrt() / exact.std()
    assert 0 < distance < bar


def test_what_is_recomputed_does_not_depend_on_what_is_in_the_slots(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = write(tiered("recompute"), batch=2, frames=36)
    monkeypatch.setattr(archive, "slots_of", lambda tier, retrieved: retrieved)
    tight = write(tiered("recompute"), batch=2, frames=36)
    assert torch.equal(latents_of(usual), latents_of(tight))
    assert sum(block.moved for block in usual) <= sum(block.moved for block in tight)


def test_the_first_layer_and_the_first_block_are_recomputed_exactly(backbone: WatchedBackbone, write: Write) -> None:
    """A first layer's keys and values depend on the latents alone; the first block attended to nothing but itself."""
    made: list[Block] = []

    def compare(block: Block) -> None:
        made.append(block)
        if block.index < 5:
            return
        session = backbone.sessions[-1]
        session.cache.window = 8  # with the archive on the device the pages have no window
        for old in (made[0], made[4]):
            recomputed = session.recompute(0, old.start, old.latents, 0)
            frames = range(old.start, old.start + 3)
            for index, (layer, ours) in enumerate(zip(session.cache.layers, recomputed, strict=True)):
                near = [torch.allclose(a[0], b, atol=1e-5) for a, b in zip(layer.pages.read(frames), ours, strict=True)]
                assert all(near) == (old.index == 0 or index == 0)

    write(RETRIEVING, frames=18, on_block=compare)
    assert len(made) == 6


def test_recomputing_leaves_no_trace(backbone: WatchedBackbone, write: Write) -> None:
    def disturb(block: Block) -> None:
        if block.index:
            backbone.sessions[-1].recompute(1, block.start, block.latents[1:], 0)

    plain = latents_of(write(tiered("recompute"), frames=36, batch=2))
    disturbed = latents_of(write(tiered("recompute"), frames=36, batch=2, on_block=disturb))
    assert torch.equal(plain, disturbed)


def test_a_page_is_recomputed_under_its_last_prompt(backbone: WatchedBackbone) -> None:
    """A change of the prompt leaves frames outside the window alone; those in it are then of the new prompt."""
    prompts = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    blocks = rollout(
        backbone,
        prompts[0],
        frames=24,
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000], shift=5.0),
        memory=tiered("recompute"),
        history=History(average_pool),
        noise=AddressedNoise(0),
        changes={5: Change(prompts[1])},
    )

    def values(start: int) -> dict[int, torch.Tensor]:
        """Keys and values of frames of the window's past as the tier restores them, by frame."""
        archive, session = backbone.sessions[-1].cache.archive, backbone.sessions[-1]
        assert archive is not None
        restored = {}
        for frame in range(start, start + 3):
            archive._slots.discard(range(24))  # type: ignore[union-attr]
            archive.fetch([[frame]], session.recompute)
            layers = range(len(session.cache.layers))
            parts = [archive.read(layer, kind, 0, [frame]) for layer in layers for kind in (KEYS, VALUES)]
            restored[frame] = torch.cat([part.flatten() for (part,) in parts])
        return restored

    made = [next(blocks) for _ in range(5)]
    before = values(3) | values(6) | values(9)
    made += [next(blocks) for _ in range(2)]
    after = values(3) | values(6) | values(9)
    for frame in range(3, 8):  # the window began at frame 7, which left it as the sink kept its place
        assert torch.equal(after[frame], before[frame])
    for frame in range(8, 12):
        assert not torch.allclose(after[frame], before[frame], atol=1e-4)


def test_only_pages_that_are_not_there_are_moved(write: Write) -> None:
    fixed = parse_memory(fields_for(RETRIEVING.model_dump(), "deep-sink"))  # the same frames for ever
    blocks = write(tiered("host", fixed), frames=60)
    assert sum(block.moved for block in blocks) == 3
    for block, before in zip(write(tiered("host"), frames=60)[1:], write(tiered("host"), frames=60), strict=False):
        if block.retrieved:
            kept = set(before.retrieved[0]) if before.retrieved else set()
            assert block.moved <= len(set(block.retrieved[0]) - kept)
    assert all(block.moved == 0 for block in write(RETRIEVING, frames=60))


def test_an_archive_on_disk_lies_in_the_folder_it_is_given(backbone: WatchedBackbone, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    blocks = rollout(
        backbone,
        torch.zeros(1, 5, 8),
        frames=9,
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000], shift=5.0),
        memory=tiered("disk"),
        history=History(average_pool),
        noise=AddressedNoise(0),
        scratch=nowhere,
    )
    with pytest.raises(LlragError, match="nowhere"):
        next(blocks)


def held(pipeline: Pipeline, seconds: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes by the names of the plan, at the end of a video."""
    started: list[WanSession] = []
    start = pipeline.backbone.start
    monkeypatch.setattr(pipeline.backbone, "start", lambda *given: started.append(start(*given)) or started[-1])
    session = pipeline.start("a red circle", seconds=seconds)
    for _ in range(session.block_count):
        next(session)
    cache, memory = started[-1].cache, pipeline.config.memory
    sizes = {"K/V that a block attends to": sum(layer.bytes for layer in cache.layers)}
    if cache.archive is None:
        return sizes | {"archive of K/V": cache.bytes}
    assert isinstance(memory, RetrievalMemory)
    kept = "archive of latents" if memory.archive == "recompute" else "archive of K/V"
    archive = {"retrieved K/V": cache.archive.device_bytes, kept: cache.archive.pool_bytes}
    return sizes | {"K/V window": cache.bytes} | archive


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_bytes_are_held_bytes(
    tier: Tier, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"memory.archive={tier}", "sampler.steps=[1000]")
    config = load_config("tiny", settings=settings)
    budget = plan(config, tmp_path, device=torch.device("cpu"), dtype=dtype, seconds=14)
    planned = {part.name: part.bytes for part in budget.parts}
    pipeline = Pipeline.load(config, device="cpu", dtype=str(dtype).removeprefix("torch."))
    for name, size in held(pipeline, 14, monkeypatch).items():
        assert planned[name] == size, name
    history = History(pipeline.encode_key, frames=config.latent_frames(14))
    history.append(torch.zeros(1, 3, 8, 8, 8))
    assert planned["keys of the history"] == history.bytes


def archive_of(budget: Budget) -> str:
    memory = budget.config.memory
    assert isinstance(memory, RetrievalMemory)
    return memory.archive


@pytest.mark.parametrize("free", [10**12, 10**9, 150 * 10**6])
def test_auto_takes_the_first_exact_tier_that_fits(free: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llrag_cli.planning.free_memory", lambda device: free)
    config = load_config("tiny")
    expected = {10**12: "device", 10**9: "device", 150 * 10**6: "disk"}[free]
    cpu, kind = torch.device("cpu"), torch.float32
    budget = plan(config, tmp_path, device=cpu, dtype=kind, seconds=1200)
    assert archive_of(budget) == expected in EXACT
    monkeypatch.setattr("llrag_cli.planning.free_disk", lambda folder: 10**6)
    unfit = plan(config, tmp_path, device=cpu, dtype=kind, seconds=1200)
    if expected == "disk":
        with pytest.raises(LlragError, match=r"needs 315 MB on disk, which has 1 MB free; .* archive of K/V") as told:
            unfit.require()
        assert told.value.hint.startswith("make a shorter video; ") and "picture" not in told.value.hint
        assert "`memory.archive` to `recompute`" in told.value.hint
        assert "`--archive recompute`" in hint_for(told.value)


@pytest.mark.parametrize(("limit", "tier"), [(10**9, "device"), (140 * 10**6, "host-int8"), (40 * 10**6, "recompute")])
def test_a_memory_budget_picks_the_best_tier_that_fits(
    limit: int, tier: Tier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llrag_cli.planning.free_disk", lambda folder: 10**7)  # no room for keys and values
    config = load_config("tiny")
    cpu, kind = torch.device("cpu"), torch.float32
    budget = plan(config, tmp_path, device=cpu, dtype=kind, seconds=1200, limit=limit)
    assert archive_of(budget) == tier
    budget.require()
    with pytest.raises(
        LlragError, match=r"on cpu, where the memory limit allows 5 MB; the most goes to weights"
    ) as told:
        plan(config, tmp_path, device=cpu, dtype=kind, seconds=1200, limit=5 * 10**6).require()
    assert told.value.hint.startswith("use a smaller backbone")  # neither length nor picture would be enough


def test_what_would_help_is_advised(tmp_path: Path) -> None:
    cpu, kind, config = torch.device("cpu"), torch.float32, load_config("tiny", memory="none")

    def hint(seconds: float, *, share: float, scale: int = 1) -> str:
        """The advice where only a share of what is needed is free."""
        size = {"height": scale * config.backbone.height, "width": scale * config.backbone.width}
        larger = config.model_copy(update={"backbone": config.backbone.model_copy(update=size)})
        budget = plan(larger, tmp_path, device=cpu, dtype=kind, seconds=seconds)
        free = {**budget.free, "device": int(share * budget.total("device"))}
        with pytest.raises(LlragError) as told:
            dataclasses.replace(budget, free=free).require()
        return told.value.hint

    assert hint(10**7, share=0.3) == "make a shorter video"  # the keys of the history
    picture = "make the picture smaller with `backbone.height` and `backbone.width`"
    assert hint(10, share=0.6, scale=10).endswith(picture)
    assert hint(10, share=0.3) == "use a smaller backbone, or store its weights in fewer bits"


def test_the_native_window_runs_beyond_1024_frames(write: Write) -> None:
    memory = SlidingWindow(window=4, sink=1)
    latents = latents_of(write(memory, frames=1032, block=3))
    late, early = latents[:, 1024:], latents[:, 100:108]
    assert late.shape == early.shape and late.isfinite().all()
    torch.testing.assert_close(late.std(), early.std(), rtol=0.2, atol=0.0)


@pytest.mark.parametrize("late", [1023, 1024, 100_000, 10_000_000])
def test_only_distance_in_time_counts_however_late(late: int) -> None:
    """Scores of a query and a key n frames apart are those at the start of the video."""
    rotary = RotaryTables(16)
    times = torch.tensor([0.0, 5.0, 11.0], dtype=torch.float64)
    near, far = (
        torch.view_as_complex(rotary.table(times + shift, height=1, width=2)).squeeze(1) for shift in (0, late)
    )
    assert torch.allclose(near @ near.mH, far @ far.mH, atol=2e-6)


@pytest.mark.parametrize("rule", [None, "renew"])
def test_a_block_that_saw_only_the_sink_is_recomputed_exactly(backbone: WatchedBackbone, rule: str | None) -> None:
    """Its context was what recomputing gives it: the sink, where it is now, at the times of its slots."""
    prompts = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    alone = Nearest(window=5, sink=1, retrieved=1, guard=100)  # three frames besides the sink: the block's own
    changes = {} if rule is None else {2: Change(prompts[1], recache=rule)}  # type: ignore[arg-type]
    made: list[Block] = []
    for block in rollout(
        backbone,
        prompts[0],
        frames=21,
        shape=SHAPE,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000], shift=5.0),
        memory=alone,
        history=History(average_pool),
        noise=AddressedNoise(0),
        context_timestep=100.0,
        changes=changes,
    ):
        made.append(block)
        session = backbone.sessions[-1]
        session.cache.window = 5
        if len(made) < 5:
            continue
        for old in made[3:]:
            recomputed = session.recompute(0, old.start, old.latents, session._prompt)
            frames = range(old.start, old.start + 3)
            for layer, ours in zip(session.cache.layers, recomputed, strict=True):
                for was, now in zip(layer.pages.read(frames), ours, strict=True):
                    torch.testing.assert_close(was[0], now, atol=1e-5, rtol=1e-5)


def test_caches_grow_with_the_batch_and_weights_do_not(tmp_path: Path) -> None:
    parts = {}
    for tier in TIERS:
        config = load_config("tiny", settings=[f"memory.archive={tier}"])
        one, three = (
            plan(config, tmp_path, device=torch.device("cpu"), dtype=torch.float32, seconds=14, batch=batch, pinned=2)
            for batch in (1, 3)
        )
        parts |= {part.name: other.bytes / part.bytes for part, other in zip(one.parts, three.parts, strict=True)}
    assert {name for name, ratio in parts.items() if ratio == 1} == {
        "weights", "retrieval encoder", "rotary tables", "recomputing",
    }  # fmt: skip
    assert {ratio for ratio in parts.values() if ratio != 1} == {3}
    assert "keys of the history" in parts and "pinned references" in parts


def test_the_window_of_a_commit_rule_holds_what_takes_the_place_of_the_sink(tmp_path: Path) -> None:
    sizes = {}
    for rule in ("full", "recent", "self"):
        settings = ["memory.archive=host", "memory.sink=3", f"memory.commit={rule}"]
        planned = plan(
            load_config("tiny", settings=settings),
            tmp_path, device=torch.device("cpu"), dtype=torch.float32, seconds=60,
        )  # fmt: skip
        sizes[rule] = {part.name: part.bytes for part in planned.parts}
    assert sizes["self"] == sizes["full"]
    assert sizes["recent"].pop("K/V window") * 12 == sizes["full"].pop("K/V window") * 15
    assert sizes["recent"] == sizes["full"]


def budget(free: dict[str, int | None], *parts: tuple[int, str], limit: int | None = None) -> Budget:
    named = tuple(Part(f"part {number}", size, where) for number, (size, where) in enumerate(parts))  # type: ignore[arg-type]
    return Budget(load_config("tiny"), named, torch.device("cuda"), free, limit)  # type: ignore[arg-type]


def test_a_plan_is_comfortable_up_to_nine_tenths_of_what_is_free() -> None:
    free = {"device": 1000, "host": 1000, "disk": None}
    assert budget(free, (900, "device"), (900, "host")).comfortable
    for where in ("device", "host"):
        tight = budget(free, (901, where))
        assert tight.short is None and not tight.comfortable
        assert budget(free, (1000, where)).short is None
        assert budget(free, (1001, where)).short == where
    assert budget(free, (901, "device"), limit=901).comfortable is False  # what is free is still short
    assert budget(free | {"device": 2000}, (901, "device"), limit=901).comfortable  # a limit may be used up


def test_a_limit_holds_on_device_and_host_each_but_not_on_disk() -> None:
    free = {"device": 1000, "host": 1000, "disk": 1000}
    assert budget(free, (500, "device"), (500, "host"), (999, "disk"), limit=500).short is None
    short = budget(free, (500, "device"), (501, "host"), limit=500)
    assert short.short == "host" and short.room("host") == 500
    with pytest.raises(LlragError, match=r"needs 501 B on the host, where the memory limit allows 500 B"):
        short.require()
    assert budget({**free, "host": 400}, (401, "host"), limit=500).room("host") == 400
    assert budget(free, (501, "device"), limit=500).short == "device"


def test_auto_leaves_a_tenth_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = load_config("tiny")
    wanted = plan(
        load_config("tiny", settings=["memory.archive=device"]),
        tmp_path, device=torch.device("cpu"), dtype=torch.float32, seconds=1200,
    ).total("device")  # fmt: skip
    for share, tier in ((0.91, "disk"), (0.89, "device")):
        monkeypatch.setattr("llrag_cli.planning.free_memory", lambda device, share=share: int(wanted / share))
        found = plan(config, tmp_path, device=torch.device("cpu"), dtype=torch.float32, seconds=1200)
        assert archive_of(found) == tier
