"""What a block costs on a GPU besides its arithmetic, counted on a fake one: copies, waits, memory, races.

Sizes are those of Wan2.1-T2V-1.3B at 832x480, with one layer; what is counted does not depend on their number.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakecuda import FakeGPU, Wait
from llrag_cli.config import ModelShape
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragWarning
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.memory.history import average_pool
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.runs.sink import VideoSink

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LAYERS = 1
SMALL = ("backbone.height=8", "backbone.width=8", "memory.keys=average", "sampler.steps=[1000]")


@dataclass
class Counted:
    """What a block had counted when the next one began."""

    small_copies: Counter[str]
    host_waits: Counter[str]
    waits: list[Wait]
    moved_to_device: int
    moved_to_host: int


@dataclass
class Video:
    peak: int = 0
    blocks: list[Counted] = field(default_factory=list)

    @property
    def steady(self) -> Counted:
        return self.blocks[-2]  # the last one looks up nothing for a next one


class Frames:
    """A file that is not written; it keeps what it was handed."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []

    def write(self, frames: Tensor) -> None:
        self.written.append(frames)

    def close(self) -> None: ...


class Passing:
    """A decoder of small frames, where decoding is not what is counted."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :, :3]


@dataclass(frozen=True)
class Machine:
    """The fake GPU with weights on it."""

    gpu: FakeGPU
    pipeline: Pipeline

    def make(
        self,
        *settings: str,
        memory: str = "nearest",
        blocks: int = 11,
        scratch: Path | None = None,
        switch: Callable[[Any, int], None] = lambda session, block: None,
    ) -> Video:
        """A video, decoded on a thread as a run does it; the frames retrieved are random ones."""
        config = load_config("self-forcing", memory=memory, settings=settings)
        size, now, gpu, before = config.backbone.frames_per_block, 0, self.gpu, self.gpu.live

        def read(tensor: Tensor) -> Any:
            if tensor.dtype == torch.bool:
                return torch.ones(tensor.shape, dtype=torch.bool).tolist()
            if tensor.dtype == torch.uint8:  # small frames
                return torch.zeros(tensor.shape).tolist()
            assert tensor.ndim == 3 and len(tensor) == 2  # frames and their similarities, [2, B, K]
            last = size * (now + 1) - config.memory.window - config.memory.guard  # type: ignore[operator,union-attr]
            rows = [random.Random(now).sample(range(1, 1 + last), tensor.shape[2]) for _ in range(tensor.shape[1])]
            return [rows, [[0.5] * tensor.shape[2] for _ in rows]]

        gpu.read = read
        gpu.races.clear()
        gpu.runtime.calls.clear()
        gpu.forget_peak()
        pipeline = replace(self.pipeline, config=config)
        if getattr(config.memory, "keys", "average") == "average":
            pipeline = replace(pipeline, encode_key=average_pool)
        video, frames = Video(), Frames()
        session = pipeline.start("a random embedding", seconds=blocks * size / 4, scratch=scratch)
        with VideoSink(Passing(), frames) as queue, session:
            gpu.reset()
            for block in session:
                queue.put(block.latents)
                now = block.index + 1
                video.blocks.append(
                    Counted(gpu.small_copies, gpu.host_waits, gpu.waits, gpu.moved("device"), gpu.moved("host"))
                )
                gpu.reset()
                switch(session, now)
        video.peak = gpu.peak
        del session, queue, block
        gc.collect()
        assert all(each.dtype == torch.uint8 for each in frames.written)
        assert gpu.races == []
        assert gpu.live - before < 100_000  # but for timesteps, nothing is left
        assert gpu.runtime.ranges == {}  # all host memory is unlocked
        return video


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    config = load_config("self-forcing")
    with FakeGPU() as gpu:
        shape = ModelShape(num_layers=LAYERS)
        how = Execution(attention="native")  # a trial would be kept in the user's cache
        yield Machine(gpu, random_pipeline(config, shape, device=CUDA, dtype=torch.bfloat16, how=how))


@pytest.fixture(scope="module")
def retrieving(machine: Machine) -> Video:
    return machine.make("memory.archive=host")


@pytest.fixture(scope="module")
def native(machine: Machine) -> Video:
    return machine.make(memory="none", blocks=6)


def test_a_block_needs_few_small_copies(retrieving: Video, native: Video) -> None:
    """Noise and, where frames are retrieved, nothing but where pictures begin; without retrieval, rotary tables."""
    assert retrieving.steady.small_copies == {"engine/rollout:denoise": 4, "engine/rollout:retrieve": 1}
    assert native.steady.small_copies == {"engine/rollout:denoise": 4, "models/wan/transformer:_tables": 1}


def test_the_host_waits_once_a_block(retrieving: Video, native: Video) -> None:
    """To learn what was retrieved; without retrieval, whether the block is finite, when the clean pass is queued."""
    assert retrieving.steady.host_waits == {"engine/rollout:retrieve": 1}
    assert native.steady.host_waits == {"engine/rollout:require_finite": 1}


def test_a_block_waits_for_what_it_retrieves_and_for_no_write(retrieving: Video) -> None:
    waits = [wait for wait in retrieving.steady.waits if wait.stream == "main"]
    assert {wait.site for wait in waits} == {"cache/archive:fetch", "cache/archive:settle"}
    assert len({wait.on for wait in waits}) == 2
    settled = [wait for wait in waits if wait.site == "cache/archive:settle"]
    assert len(settled) <= 1  # of a block whose pages are overwritten now, not of the one before


def test_retrieved_pages_and_new_ones_are_all_that_is_moved(retrieving: Video) -> None:
    page = 2 * 1560 * 1536 * 2 * LAYERS
    assert 0 < retrieving.steady.moved_to_device <= 2 * 6 * page + 10_000_000  # the threads of the archive may be
    assert 0 < retrieving.steady.moved_to_host <= 2 * 3 * page + 1_000_000  # a block behind


def test_the_peak_is_what_was_planned(machine: Machine, retrieving: Video, native: Video) -> None:
    """Within 5 %, at full size, generating and decoding each by itself."""
    gpu, shape = machine.gpu, ModelShape(num_layers=LAYERS)
    loaded = machine.pipeline
    for video, memory, settings in ((retrieving, "nearest", ["memory.archive=host"]), (native, "none", [])):
        config = load_config("self-forcing", memory=memory, settings=settings)
        budget = plan(config, Path("nothing"), device=CPU, dtype=torch.bfloat16, seconds=8, shape=shape, text=False)
        parts = {part.name: part.bytes for part in budget.parts if not part.name.startswith("archive")}
        decoding = parts.pop("decoding")
        if memory == "none":  # the fake GPU has it all the same
            parts["retrieval encoder"] = sum(4 * each.numel() for each in loaded.encode_key.parameters())  # type: ignore[attr-defined]
        assert sum(parts.values()) == pytest.approx(video.peak, rel=0.05)
    stream, latent = loaded.decoder.stream(), torch.empty(1, 1, 16, 60, 104, device=CUDA)
    before = gpu.live
    gpu.reset()
    for _ in range(3):
        gpu.forget_peak()
        stream.decode(latent)
    assert decoding == pytest.approx(gpu.peak - before, rel=0.05)
    assert gpu.copies == [] and gpu.syncs == []  # frames are copied by the sink, once, as bytes


def switching(session: Any, block: int) -> None:
    """A switch, two cuts close together, a switch right after the second."""
    if block in (7, 11):
        session.switch("another embedding")
    if block in (9, 10):
        session.switch("another embedding", cut=True)


@pytest.mark.parametrize("archive", ["host-int8", "disk", "recompute"])
def test_nothing_races_whatever_the_tier(machine: Machine, tmp_path: Path, archive: str) -> None:
    """Also where the window is computed again, and where its pages are overwritten sooner than usual."""
    video = machine.make(*SMALL, f"memory.archive={archive}", blocks=13, scratch=tmp_path, switch=switching)
    assert list(tmp_path.iterdir()) == []
    if archive != "recompute":
        assert video.steady.host_waits == {"engine/rollout:retrieve": 1}


def test_host_memory_is_locked_in_pieces_by_the_thread_that_writes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llrag_cli.cache.pages.PIECE", 2**19)
    machine.make(*SMALL, "memory.archive=host", blocks=8)
    calls = machine.gpu.runtime.calls
    assert len(calls) > 2 and all(size <= 2**19 for size, _ in calls)
    assert all(thread.startswith("archive-write") for _, thread in calls)


def test_memory_that_cannot_be_locked_goes_through_buffers(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and the thread that generates waits no more than before."""
    monkeypatch.setattr("llrag_cli.cache.pages.PIECE", 2**20)
    monkeypatch.setattr(machine.gpu.runtime, "limit", 3 * 2**20)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", LlragWarning)
        video = machine.make(*SMALL, "memory.archive=host", blocks=10)
    assert [str(each.message).split(" of ")[0] for each in told if each.category is LlragWarning] == [
        "CUDA page-locks only 2.95 MB"
    ]
    assert video.steady.host_waits == {"engine/rollout:retrieve": 1}
