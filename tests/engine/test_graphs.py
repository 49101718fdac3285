"""Recorded passes: replays equal what is computed, bit for bit, and nothing stale is ever replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import SHAPE, WatchedBackbone, latents_of
from llrag_cli.cache.kv import WanKVLayerCache
from llrag_cli.engine.execution import Execution, require_graphs
from llrag_cli.engine.pipeline import schedule_of
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.memory.history import History, average_pool
from llrag_cli.models.wan.graphs import MOST, CUDAGraphs, PassGraphs
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from tape import TapeRecorder

PROMPTS = torch.randn(4, 1, 5, 8, generator=torch.Generator().manual_seed(1))
FRAMEWISE = "causal-forcing-framewise"


def video(
    backbone: WatchedBackbone,
    preset: str,
    *settings: str,
    memory: str = "nearest",
    blocks: int,
    batch: int = 1,
    changes: bool = False,
    reference: bool = False,
) -> Iterator[Block]:
    """A video whose window fills; perhaps with a switch, a cut and another switch, and a reference before it."""
    settings = ("memory.keys=average", "memory.archive=device", *settings) if memory != "none" else settings
    config = load_config(preset, memory=memory, settings=settings)
    prompts = [prompt.expand(batch, -1, -1) for prompt in PROMPTS]
    third = blocks // 3
    shots = {third: Change(prompts[1]), 2 * third: Change(prompts[2], cut=True), blocks - 3: Change(prompts[3])}
    return rollout(
        backbone,
        prompts[0],
        frames=blocks * config.backbone.frames_per_block,
        shape=SHAPE,
        block=config.backbone.frames_per_block,
        schedule=schedule_of(config),
        memory=config.memory,
        history=History(average_pool),
        noise=AddressedNoise(0, range(batch)),
        changes=shots if changes else {},
        references=[Reference(torch.ones(batch, 4, *SHAPE), prompts[1])] if reference else [],
    )


def compare(backbone: WatchedBackbone, *arguments: Any, **options: Any) -> PassGraphs:
    """Make a video as it is and with recorded passes; they must be the same. Returns what was recorded."""
    plain = latents_of([*video(backbone, *arguments, **options)])
    backbone.recorder = TapeRecorder()
    assert torch.equal(latents_of([*video(backbone, *arguments, **options)]), plain)
    assert plain.isfinite().all()
    graphs = backbone.sessions[-1].graphs
    assert graphs is not None
    return graphs


@pytest.mark.parametrize(
    ("preset", "memory", "blocks", "recorded", "replayed"),
    [
        (FRAMEWISE, "none", 17, 1, 5 * 4),  # the window of 12 is full at block 11; recorded at block 12
        (FRAMEWISE, "nearest", 24, 1, 12 * 4),
        ("self-forcing", "none", 7, 1, 3 * 4),
        ("self-forcing", "nearest", 12, 2, 7 * 4),  # while two frames are retrieved, then six
    ],
)
def test_a_replayed_pass_equals_a_computed_one(
    backbone: WatchedBackbone, preset: str, memory: str, blocks: int, recorded: int, replayed: int
) -> None:
    graphs = compare(backbone, preset, memory=memory, blocks=blocks)
    assert (graphs.recorded, graphs.replayed) == (recorded, replayed)


@pytest.mark.parametrize(
    ("memory", "settings", "batch"),
    [
        ("none", (), 1),
        ("nearest", (), 2),  # each video of the batch retrieves frames of its own
        ("nearest", ("memory.read_steps=1",), 1),  # passes with and without retrieved frames
        ("prompt", (), 1),  # and one before the frames are retrieved
        ("nearest", ("memory.commit=self",), 1),
    ],
)
def test_switches_cuts_and_references_change_nothing(
    backbone: WatchedBackbone, memory: str, settings: tuple[str, ...], batch: int
) -> None:
    """Each prompt has recordings of its own, of which there are few."""
    options = {"memory": memory, "batch": batch, "blocks": 24, "changes": True, "reference": memory == "nearest"}
    graphs = compare(backbone, "self-forcing", *settings, **options)
    assert 2 <= graphs.recorded <= 4 * MOST
    assert graphs.replayed >= 4
    assert graphs._entries == {}  # the session has ended


def test_a_recording_of_another_prompt_would_be_noticed(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PassGraphs, "clear", lambda graphs: None)
    with pytest.raises(AssertionError):
        compare(backbone, "self-forcing", memory="none", blocks=15, changes=True)


def test_a_recording_of_another_length_would_be_noticed(
    backbone: WatchedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WanKVLayerCache, "places", property(lambda layer: ("anywhere",)))
    with pytest.raises(AssertionError):
        compare(backbone, "self-forcing", memory="none", blocks=6)


@pytest.mark.parametrize("shows", ["attention", "one buffer"])
def test_passes_that_do_more_are_computed(backbone: WatchedBackbone, shows: str) -> None:
    backbone.sharing = "all" if shows == "one buffer" else "none"
    settings = ["memory.keys=attention"] if shows == "attention" else []
    graphs = compare(backbone, "self-forcing", *settings, memory="nearest", blocks=12)
    assert graphs.recorded == graphs.replayed == 0


def test_sessions_have_recordings_of_their_own(backbone: WatchedBackbone) -> None:
    alone = [latents_of([*video(backbone, FRAMEWISE, memory=memory, blocks=20)]) for memory in ("none", "nearest")]
    backbone.recorder = TapeRecorder()
    sides = [video(backbone, FRAMEWISE, memory=memory, blocks=20) for memory in ("none", "nearest")]
    turns = list(zip(*sides, strict=True))
    for side, expected in enumerate(alone):
        assert torch.equal(latents_of([turn[side] for turn in turns]), expected)
    assert [session.graphs.recorded for session in backbone.sessions[-2:] if session.graphs] == [1, 1]


def test_recordings_are_bounded() -> None:
    graphs, given = PassGraphs(TapeRecorder()), torch.ones(2)
    for _ in range(3):
        graphs.begin_context()
        for kind in range(20):
            assert graphs.compute(kind, lambda x, factor=kind: x * factor, given).tolist() == [kind, kind]
    assert graphs.recorded == MOST and graphs.replayed == 2 * MOST
    graphs.clear()
    for kind in range(100):
        graphs.begin_context()
        graphs.compute(kind, lambda x: x, given)
    assert len(graphs._seen) == 32


class FakeCUDA:
    """What of ``torch.cuda`` records a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.log: list[Any] = []
        self.fails = fails
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    @contextmanager
    def graph(self, graph: Any, **options: Any) -> Iterator[None]:
        self.log.append(options)
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_graphs_share_memory_and_let_other_threads_be(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCUDA(monkeypatch)
    recorder = CUDAGraphs(torch.device("cuda"))
    for _ in range(2):
        recorded = recorder.record(lambda: torch.ones(1))
        recorded.replay()
        assert recorded.output.tolist() == [1]
    assert cuda.log == 2 * [{"pool": (0, 7), "capture_error_mode": "thread_local"}, "replay"]


def test_what_cannot_be_recorded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCUDA(monkeypatch, fails=True)
    with pytest.raises(LlragError, match=r"as a CUDA graph: operation not permitted when stream is capturing$"):
        CUDAGraphs(torch.device("cuda")).record(lambda: torch.ones(1))


@pytest.mark.parametrize(
    ("how", "device", "said"),
    [
        (Execution(cuda_graphs=True), "cpu", "CUDA graphs need a GPU"),
        (Execution(cuda_graphs=True, offload=True), "cuda", "weights that are copied to the GPU in every pass"),
        (Execution(cuda_graphs=True, sharing="all"), "cuda", "a buffer that all layers share"),
    ],
)
def test_where_nothing_can_be_recorded_it_is_refused(how: Execution, device: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        require_graphs(how, torch.device(device))
    require_graphs(Execution(cuda_graphs=True), torch.device("cuda"))


def test_the_memory_of_a_recorded_pass_is_planned() -> None:
    config, cpu = load_config(FRAMEWISE, memory="none"), torch.device("cpu")
    plans = [
        plan(config, Path("nothing"), device=cpu, dtype=torch.bfloat16, seconds=5, prompts=(), cuda_graphs=recorded)
        for recorded in (False, True)
    ]
    added = {part.name: part.bytes for part in plans[1].parts} | {part.name: 0 for part in plans[0].parts}
    activations = next(part.bytes for part in plans[0].parts if part.name == "activations")
    assert {name: size for name, size in added.items() if size} == {"CUDA graphs": activations}
