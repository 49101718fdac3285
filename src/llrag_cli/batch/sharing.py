"""Work that several commands share: each takes what no other one is doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from llrag_cli.errors import RunLockedError

Each = TypeVar("Each")
Result = TypeVar("Result")
POLL = 2.0  # seconds between looks at runs that another process is writing


def shared(
    work: Sequence[Each],
    attempt: Callable[[Each], Result],
    *,
    on_wait: Callable[[RunLockedError, int], None] = lambda error, count: None,
) -> Iterator[tuple[Each, Result]]:
    """Attempt each piece of work; yields those that are done, with their results.

    What another process has locked comes last: it is done when that process has finished it, or is continued here if
    that process ended before. ``on_wait`` is called once, with the first lock and the number of runs, when nothing
    else is left.
    """
    waited = False
    while work:
        locked: list[tuple[Each, RunLockedError]] = []
        for each in work:
            try:
                result = attempt(each)
            except RunLockedError as error:
                locked.append((each, error))
            else:
                yield each, result
        if len(locked) == len(work):
            if not waited:
                on_wait(locked[0][1], len(locked))
            waited = True
            time.sleep(POLL)
        work = [each for each, _ in locked]
