"""Jobs of an engine, with one live line of progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from llrag_cli.batch.executors import Engine, Job, Outcome, Result
from llrag_cli.cli import console
from llrag_cli.cli.hints import hint_for
from llrag_cli.errors import LlragError
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

    ``completed`` returns how many of the ``total`` steps are done, given the jobs that have ended.
    """
    outcomes: list[Outcome[Result]] = []
    shown = 0
    with console.counting(title, total=total, resume_with="the same command") as advance:

        def update() -> None:
            nonlocal shown
            done = completed(outcomes)
            advance(done - shown, f"{len(outcomes)}/{len(jobs)} done")
            shown = done

        with closing(engine.run(work, jobs, on_tick=update)) as running:  # after any error the workers are stopped
            for outcome in running:
                outcomes.append(outcome)
                update()
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
