"""How pages move between a GPU and the host: through staging buffers, on streams and threads of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fakecuda import FakeGPU
from llrag_cli.cache import pages
from llrag_cli.cache.archive import Traffic
from llrag_cli.cache.pages import Staging


def test_staging_buffers_are_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STAGING", 8)
    written: list[tuple[int, int]] = []

    def write(offset: int, part: torch.Tensor) -> None:
        written.append((offset, len(part)))

    with FakeGPU():
        staging, device = Staging(count=3), torch.device("cuda:0")
        staging.to_host(torch.zeros(20, dtype=torch.uint8, device=device), write)
        assert written == []  # each of the three copies may still be under way
        staging.to_host(torch.zeros(12, dtype=torch.uint8, device=device), write)
        assert written == [(0, 8), (8, 8)]  # whose buffers are used again
        staging.drain()
    assert written == [(0, 8), (8, 8), (16, 4), (0, 8), (8, 4)]


def test_copies_that_have_not_begun_are_left_out_at_the_end() -> None:
    begun, goes_on = Event(), Event()
    done: list[str] = []

    def first() -> None:
        begun.set()
        goes_on.wait(60)
        done.append("first")

    stream: Any = SimpleNamespace(synchronize=lambda: done.append("waited"))
    traffic = Traffic(stream, ThreadPoolExecutor(max_workers=1))
    traffic.thread.submit(first)
    assert begun.wait(60)
    later = traffic.thread.submit(done.append, "second")
    later.add_done_callback(lambda _: goes_on.set())  # at once, when it is left out
    traffic.close()
    assert done == ["first", "waited"] and later.cancelled()
