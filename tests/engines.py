"""An engine that needs no processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Sequence

from llrag_cli.batch.executors import Job, Outcome, Result, attempt


class Here:
    """Runs jobs in this process, one after the other; jobs and outcomes are pickled, as for another process."""

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Generator[Outcome[Result], None, None]:
        """As ``Engine.run``."""
        for number, job in enumerate(jobs):
            sent_work, sent_job = pickle.loads(pickle.dumps((work, job)))
            yield pickle.loads(pickle.dumps(attempt(sent_work, number, sent_job)))
            on_tick()
