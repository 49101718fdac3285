"""Calls of what ``torch.compile`` returns, on several threads.

The compiler does not allow it by itself: while one thread compiles, the call of another one raises an error, and
settings of the compiler are those of the process (pytorch/pytorch#118260, #126024).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class CompiledCalls:
    """Calls of one model's compiled code. The first of each kind, which may compile, runs while no other one does."""

    def __init__(self) -> None:
        self._known: set[Hashable] = set()

    @contextmanager
    def call(self, kind: Hashable) -> Iterator[None]:
        """A call in this context; calls of a ``kind``, such as the shape of their input, use the same graphs."""
        alone = kind not in self._known
        _all_calls.begin(alone=alone)
        try:
            yield
            self._known.add(kind)
        finally:
            _all_calls.end()


class _AllCalls:
    """The calls that run in this process now."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._alone = False  # one runs that may compile

    def begin(self, *, alone: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not (alone and self._running))
            self._running += 1
            self._alone = alone

    def end(self) -> None:
        with self._changed:
            self._running -= 1
            self._alone = False
            self._changed.notify_all()


_all_calls = _AllCalls()
