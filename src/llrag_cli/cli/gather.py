"""Jobs of an engine, with one live line of how far they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llrag_cli.batch.executors import Engine, Job, Outcome, Result
from llrag_cli.cli import console
from llrag_cli.errors import LlragError
from llrag_cli.formatting import counted


def gather(
    engine: Engine,
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    title: str,
    total: int,
    made: Callable[[Sequence[Outcome[Result]]], int],
) -> list[Outcome[Result]]:
    """What came of the jobs, in their order.

    ``made`` tells how many of the ``total`` steps are done, from the jobs that have ended and what else it can see.
    """
    outcomes: list[Outcome[Result]] = []
    told = 0
    with console.counting(title, total=total, goes_on="the same command") as advance:

        def look() -> None:
            nonlocal told
            done = made(outcomes)
            advance(done - told, f"{len(outcomes)}/{len(jobs)} done")
            told = done

        for outcome in engine.run(work, jobs, on_tick=look):
            outcomes.append(outcome)
            look()
    return sorted(outcomes, key=lambda outcome: outcome.number)


def require_all(outcomes: Sequence[Outcome[Any]], names: Sequence[str]) -> None:
    """Name the jobs that failed, and why; raise an error if there are any."""
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    for outcome in failed:
        console.warn(f"{names[outcome.number]}: {outcome.problem} ({outcome.hint})")
    if failed:
        raise LlragError(
            f"{len(failed)} of {counted(len(outcomes), 'job')} failed",
            hint="what was made is kept; the same command goes on",
        )
