"""What a block costs on a GPU besides its arithmetic, counted on a fake one: copies, waits, memory, races.

Sizes are those of Wan2.1-T2V-1.3B at 832x480, with fewer layers; what is counted does not depend on their number.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fakecuda import FakeGPU, Wait
from llrag_cli.config import ModelShape
from llrag_cli.engine.execution import Execution
from llrag_cli.errors import LlragWarning
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.presets import load_config
from llrag_cli.runs.sink import VideoSink

CUDA = torch.device("cuda")
LAYERS = 2
SMALL = ("backbone.height=8", "backbone.width=8", "memory.keys=average", "sampler.steps=[1000,500]")


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
    gpu: FakeGPU
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


class Upscaling:
    """A decoder of one operation, where decoding is not what is counted."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :, :3].repeat_interleave(4, dim=1).repeat(1, 1, 1, 8, 8)


def make(
    *settings: str,
    preset: str = "self-forcing",
    memory: str = "nearest",
    blocks: int = 9,
    decode: bool = False,
    scratch: Path | None = None,
    switch: Callable[[Any, int], None] = lambda session, block: None,
    gpu: FakeGPU | None = None,
) -> Video:
    """A video on the fake GPU, decoded on a thread as a run does it; the frames retrieved are random ones."""
    config = load_config(preset, memory=memory, settings=settings)
    size, now = config.backbone.frames_per_block, 0

    def read(tensor: Tensor) -> Any:
        if tensor.dtype == torch.bool:
            return torch.ones(tensor.shape, dtype=torch.bool).tolist()
        assert tensor.ndim == 3 and len(tensor) == 2  # frames and their similarities, [2, B, K]
        last = size * (now + 1) - config.memory.window - config.memory.guard  # type: ignore[operator,union-attr]
        rows = [random.Random(now).sample(range(1, 1 + last), tensor.shape[2]) for _ in range(tensor.shape[1])]
        return [rows, [[0.5] * tensor.shape[2] for _ in rows]]

    gpu = gpu or FakeGPU()
    gpu.read = read
    video, frames = Video(gpu), Frames()
    with gpu:
        shape = ModelShape(num_layers=LAYERS)
        pipeline = random_pipeline(config, shape, device=CUDA, dtype=torch.bfloat16, how=Execution())
        session = pipeline.start("a random embedding", seconds=blocks * size / 4, scratch=scratch)
        decoder = pipeline.decoder.stream() if decode else Upscaling()
        with VideoSink(decoder, frames) as queue, session:
            gpu.reset()
            for block in session:
                queue.put(block.latents)
                now = block.index + 1
                video.blocks.append(
                    Counted(gpu.small_copies, gpu.host_waits, gpu.waits, gpu.moved("device"), gpu.moved("host"))
                )
                gpu.reset()
                switch(session, now)
                del block
        del pipeline, session, queue, decoder
    assert all(each.dtype == torch.uint8 for each in frames.written)
    assert gpu.races == []
    return video


@pytest.fixture(scope="module")
def retrieving() -> Video:
    return make("memory.archive=host")


@pytest.fixture(scope="module")
def native() -> Video:
    return make(memory="none", blocks=6)


def test_decoding_copies_nothing_but_its_frames() -> None:
    video = make(*SMALL, blocks=2, decode=True)
    assert not any("vae" in site for block in video.blocks for site in block.small_copies)


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
    assert 0 < retrieving.steady.moved_to_device <= 6 * page + 10_000_000
    frames = 12 * 480 * 832 * 3  # as bytes
    most = 3 * page + 2 * frames + 1_000_000  # the decoder may be a block behind
    assert 0 < retrieving.steady.moved_to_host <= most


def switching(session: Any, block: int) -> None:
    """A switch, two cuts close together, a switch right after the second."""
    if block in (7, 11):
        session.switch("another embedding")
    if block in (9, 10):
        session.switch("another embedding", cut=True)


@pytest.mark.parametrize("archive", ["host", "host-int8", "disk", "recompute", "device"])
def test_nothing_races_whatever_the_tier(tmp_path: Path, archive: str) -> None:
    """Also where the window is computed again, and where its pages are overwritten sooner than usual."""
    make(*SMALL, f"memory.archive={archive}", blocks=14, scratch=tmp_path, switch=switching)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_written_and_read_by_threads_of_its_own(tmp_path: Path) -> None:
    video = make(*SMALL, "memory.archive=disk", blocks=12, scratch=tmp_path)
    assert video.steady.host_waits == {"engine/rollout:retrieve": 1}


def test_host_memory_is_locked_in_pieces_by_the_thread_that_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.cache.pages.PIECE", 2**19)
    video = make(*SMALL, "memory.archive=host", blocks=12)
    runtime = video.gpu.runtime
    assert runtime.ranges == {}  # all is unlocked at the end
    assert len(runtime.calls) > 2 and all(size <= 2**19 for size, _ in runtime.calls)
    assert all(thread.startswith("archive-write") for _, thread in runtime.calls)


def test_memory_that_cannot_be_locked_goes_through_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and the thread that generates waits no more than before."""
    monkeypatch.setattr("llrag_cli.cache.pages.PIECE", 2**20)
    gpu = FakeGPU()
    gpu.runtime.limit = 3 * 2**20
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", LlragWarning)
        video = make(*SMALL, "memory.archive=host", blocks=12, gpu=gpu)
    assert [str(each.message).split(" of ")[0] for each in told if each.category is LlragWarning] == [
        "CUDA page-locks only 2.36 MB"
    ]
    assert video.steady.host_waits == {"engine/rollout:retrieve": 1}


def test_the_end_of_a_video_frees_the_gpu(retrieving: Video) -> None:
    assert retrieving.gpu.live < 0.01 * retrieving.gpu.peak


# --- the fake itself --------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with FakeGPU() as fake:
        yield fake


def test_the_fake_counts_what_blocks(gpu: FakeGPU) -> None:
    host = torch.ones(3)
    there = host.to(CUDA)
    host.pin_memory().to(CUDA, non_blocking=True)
    host.to(CUDA, non_blocking=True)  # from memory that is not page-locked
    there.cpu()
    assert [copy.waits for copy in gpu.copies] == [True, False, True, True]
    assert not gpu.syncs
    assert there.sum().item() == 0 and bool(there.bool().any())
    assert len(gpu.syncs) == 2
    there[torch.tensor([0, 2])]
    assert gpu.copies[-1].to == "device" and gpu.copies[-1].waits


def test_the_fake_counts_memory_by_its_owner(gpu: FakeGPU) -> None:
    one = torch.empty(10**6, device=CUDA)
    two = one + 1
    assert gpu.live == gpu.peak == 8 * 10**6
    view = two[:10]
    del two
    assert gpu.live == 8 * 10**6
    del view, one
    assert gpu.live == 0 and gpu.peak == sum(gpu.peak_owners.values()) == 8 * 10**6


def test_the_fake_sees_races(gpu: FakeGPU) -> None:
    side: Any = torch.cuda.Stream(CUDA)
    shared = torch.zeros(8, device=CUDA)
    with torch.cuda.stream(side):
        shared[:4].add_(1)  # before the zeros are there
    assert "used it" in gpu.races[0]
    gpu.races.clear()
    shared[4:].add_(1)  # another part of it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        shared.add_(1)
    event = side.record_event()
    assert gpu.races == []
    del shared
    assert len(gpu.races) == 1 and "is freed while" in gpu.races[0]
    gpu.races.clear()
    torch.cuda.current_stream().wait_event(event)
    pinned = torch.zeros(4).pin_memory()
    source = torch.ones(4, device=CUDA)
    pinned.copy_(source, non_blocking=True)
    with torch.cuda.stream(side):
        pinned.to(CUDA, non_blocking=True)  # while it is written
    assert len(gpu.races) == 1 and "copies host memory" in gpu.races[0]
