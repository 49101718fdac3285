"""Jobs of an engine, with one live line of progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from llrag_cli.batch.executors import Engine, Job, Outcome, Result
from llrag_cli.batch.sharing import POLL
from llrag_cli.cli import console
from llrag_cli.cli.hints import hint_for
from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.formatting import counted


def gather(
    engine: Engine,
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    title: str,
    total: int,
    completed: Callable[[Sequence[Outcome[Result]]], int],
) -> list[Outcome[Result]]:
    """The outcomes of the jobs, in their order.

    A run that another command is writing is attempted again when the other jobs have ended, as in ``shared``.
    ``completed`` returns how many of the ``total`` steps are done, given the jobs that have ended.
    """
    outcomes: list[Outcome[Result]] = []
    shown, waited = 0, False
    with console.counting(title, total=total, resume_with="the same command") as advance:

        def update() -> None:
            nonlocal shown
            done = completed(outcomes)
            advance(done - shown, f"{len(outcomes)}/{len(jobs)} done")
            shown = done

        left: Sequence[int] = range(len(jobs))
        while left:
            numbers, locked = left, []
            tasks = [jobs[number] for number in numbers]
            with closing(engine.run(work, tasks, on_tick=update)) as running:  # after any error the workers are stopped
                for outcome in running:
                    number = numbers[outcome.number]
                    if isinstance(outcome.error, RunLockedError):
                        locked.append((number, outcome.error))
                        continue
                    outcomes.append(replace(outcome, number=number))
                    update()
            if len(locked) == len(left):  # another command is making all that is left
                if not waited:
                    console.waiting_for(locked[0][1], len(locked))
                waited = True
                time.sleep(POLL)
            left = [number for number, _ in locked]
    return sorted(outcomes, key=lambda outcome: outcome.number)


def require_all(outcomes: Sequence[Outcome[Any]], names: Sequence[str]) -> None:
    """Name the jobs that failed, and why; raise an error if there are any."""
    failed = [(names[outcome.number], outcome.error) for outcome in outcomes if outcome.error is not None]
    for name, error in failed:
        hint = hint_for(error)
        console.warn(f"{name}: {error.problem}" + (f" ({hint})" if hint else ""))
    if failed:
        raise LlragError(
            f"{len(failed)} of {counted(len(outcomes), 'job')} failed",
            hint="finished work is kept; the same command continues",
        )
