"""What a block costs on a GPU besides its arithmetic, counted on a fake one: copies, waits, memory, races.

Sizes are those of Wan2.1-T2V-1.3B at 832x480, with two layers; what is counted does not depend on their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_machine import CUDA, Machine, Video, fake_machine
from llrag_cli.cache.pages import PIECE
from llrag_cli.config import ModelShape
from llrag_cli.errors import LlragWarning
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.scenes.timeline import one_shot

CPU = torch.device("cpu")
LAYERS = 2
SMALL = ("backbone.height=8", "backbone.width=8", "memory.keys=average", "sampler.steps=[1000]")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with fake_machine(LAYERS) as machine:
        yield machine


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


def planned(machine: Machine, memory: str, settings: Sequence[str] = (), **of_video: Any) -> tuple[int, int]:
    """Bytes planned on the device for what is generated, and for what decodes."""
    config = load_config("self-forcing", memory=memory, settings=settings)
    shape = ModelShape(num_layers=LAYERS)
    of_video = {"seconds": 8, "shape": shape, "prompts": (), **of_video}
    budget = plan(config, Path("nothing"), device=CPU, dtype=torch.bfloat16, **of_video)
    parts = {part.name: part.bytes for part in budget.parts if not part.name.startswith("archive")}
    if memory == "none":  # the fake GPU has it all the same
        encoder: Any = machine.pipeline.encode_key
        parts["retrieval encoder"] = sum(4 * each.numel() for each in encoder.parameters())
    decoding = parts.pop("decoding")
    return sum(parts.values()), decoding


def test_the_peak_is_what_was_planned(machine: Machine, retrieving: Video, native: Video) -> None:
    """Within 5 %, at full size, generating and decoding each by itself."""
    host = ["memory.archive=host"]
    assert planned(machine, "nearest", host)[0] == pytest.approx(retrieving.peak, rel=0.05)
    generating, decoding = planned(machine, "none")
    assert generating == pytest.approx(native.peak, rel=0.05)
    gpu = machine.gpu
    stream, latent = machine.pipeline.decoder.stream(), torch.empty(1, 1, 16, 60, 104, device=CUDA)
    before = gpu.live
    gpu.reset()
    for _ in range(3):
        gpu.forget_peak()
        stream.decode(latent)
    assert decoding == pytest.approx(gpu.peak - before, rel=0.05)
    assert gpu.copies == [] and gpu.syncs == []  # frames are copied by the sink, once, as bytes


def test_the_peak_of_a_switch_is_what_was_planned(machine: Machine, native: Video) -> None:
    """The window is computed again in one pass; a video without a switch is planned without it."""

    def switch(session: Any, block: int) -> None:
        if block == 4:  # the whole window, sink included
            session.switch("another embedding")

    video = machine.make(memory="none", blocks=6, switch=switch)
    assert planned(machine, "none", switches=True)[0] == pytest.approx(video.peak, rel=0.05)
    assert video.peak > 1.2 * native.peak


def test_the_peak_of_recomputing_is_what_was_planned(machine: Machine, tmp_path: Path) -> None:
    """One old block is computed after the other; nothing of one is held while the next one is computed."""
    video = machine.make("memory.archive=recompute", blocks=9, scratch=tmp_path)
    plan = planned(machine, "nearest", ["memory.archive=recompute"])[0]
    assert plan == pytest.approx(video.peak, rel=0.03)


def test_the_second_video_is_planned_like_the_first(machine: Machine) -> None:
    """What the first one held is free again, and what torch keeps for later counts as free."""
    settings = (*SMALL, "memory.archive=auto")
    pipeline = replace(machine.pipeline, config=load_config("self-forcing", settings=settings))
    timeline = one_shot("a random embedding", pipeline.config, latent_frames=24)

    def plan_now() -> Any:
        config = pipeline.with_archive(timeline).config
        return config, plan(config, Path("nothing"), device=CUDA, dtype=torch.bfloat16, seconds=6, loaded=True)

    (first_config, first), _ = plan_now(), machine.make(*SMALL, "memory.archive=device", blocks=8)
    (second_config, second) = plan_now()
    assert first_config == second_config and first.parts == second.parts
    assert second.free["device"] == pytest.approx(first.free["device"], abs=100_000)  # timesteps stay


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
    assert video.steady.host_waits == {"engine/rollout:retrieve": 1}


def test_the_window_is_freed_after_it_is_archived(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of the last block may still be on their way to the archive when the video ends."""
    monkeypatch.setattr(machine.pipeline.backbone, "sharing", "all")
    machine.make(*SMALL, "memory.archive=host", blocks=9)


def test_host_memory_is_locked_in_pieces_by_the_thread_that_writes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PIECE == 2**30  # bytes, as docs/performance.md says
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
