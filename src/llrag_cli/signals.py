"""Requests to stop: SIGTERM and SIGHUP end the work as Ctrl-C does.

Slurm, Docker and systemd send SIGTERM, and a terminal that is closed sends SIGHUP.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process
from threading import Thread, current_thread, main_thread
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
TOGETHER = 2.0  # seconds in which signals are one request: systemd sends both, and a terminal may send SIGHUP twice


@contextmanager
def interrupts(signals: Sequence[signal.Signals] = STOPPING, *, together: float = TOGETHER) -> Iterator[list[int]]:
    """Raise ``KeyboardInterrupt`` on these signals; yields the list of those received.

    Signals that follow another one within ``together`` seconds do not interrupt again. A signal that is ignored, as
    ``nohup`` ignores SIGHUP, or is handled by someone else stays so. Only the main thread can handle signals; in
    another one nothing changes.
    """
    received: list[int] = []
    latest = -math.inf

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal latest
        repeated = time.monotonic() - latest < together
        latest = time.monotonic()
        received.append(number)
        if not repeated:
            raise KeyboardInterrupt

    in_main_thread = current_thread() is main_thread()
    ours = [each for each in signals if in_main_thread and signal.getsignal(each) is signal.SIG_DFL]
    try:
        for each in ours:
            signal.signal(each, stop)
        yield received
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def exit_code_of_signals() -> Iterator[None]:
    """As ``interrupts``, and exit with 128 + the number of the signal that stopped the command, as shells expect."""
    with interrupts() as received:
        try:
            yield
        except (SystemExit, KeyboardInterrupt, OSError) as error:  # OSError: the terminal is gone
            if not received:
                raise
            raise SystemExit(128 + received[0]) from error


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of these signals, which a library may replace."""
    if current_thread() is not main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, *STOPPING)}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # one that was not installed by Python
                signal.signal(each, handler)


def end_with_parent() -> None:
    """End this process, which ``multiprocessing`` has started, as soon as the one that started it ends.

    A thread waits on a pipe that only the parent holds open, so it does not matter how the parent ends. What the
    process is computing is not waited for.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, name="parent", daemon=True).start()
