"""Waiting for what other processes do. No test has a deadline of its own: a busy machine only takes longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

PATIENCE = 3600.0  # seconds; it only ends a test that would wait for ever


class Process(Protocol):
    """A process that was started, as by ``subprocess.Popen``."""

    returncode: int | None

    def poll(self) -> int | None: ...


def wait_until(happened: Callable[[], object], process: Process | None = None) -> None:
    """Wait for something that must come, unless the ``process`` that is to do it ends first."""
    started = time.monotonic()
    while not happened():
        assert process is None or process.poll() is None or happened(), f"it ended with {process.returncode}"
        assert time.monotonic() - started < PATIENCE, "it never came"
        time.sleep(0.01)
