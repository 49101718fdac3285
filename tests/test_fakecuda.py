"""The fake GPU counts what a real one would be asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fakecuda import FakeGPU

CUDA = torch.device("cuda")


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
