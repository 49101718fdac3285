"""The process that generates, as it is started by a server.

Each job is told to it by the path of its folder; all else is in ``job.json``, which it reads again before each block:
that is how it learns of pauses, cancellation and new prompts.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from llrag_cli.batch.executors import begin_worker
from llrag_cli.serve.jobs import Finished
from llrag_cli.serve.settings import Computing

if TYPE_CHECKING:
    from llrag_cli.serve.generation import Generator


def serve_jobs(connection: Connection, computing: Computing, processes: int, model: str) -> None:
    """Generate the jobs that are sent, and send how each ended, until the connection is closed.

    The embedded model is loaded at once, if it is the default ``model``. SIGTERM ends a job before its next block, with
    its files complete, and then the process.
    """
    begin_worker(processes)
    from llrag_cli.serve.generation import Generator  # torch is imported here

    generator = Generator(computing)

    def stop(number: int, frame: FrameType | None) -> None:
        if not generator.is_busy:
            os._exit(128 + number)
        generator.is_stopping = True  # an exception could be raised where it is lost

    signal.signal(signal.SIGTERM, stop)
    generator.warm_up(model)
    while not generator.is_stopping and (folder := _received(connection)) is not None:
        outcome = generator.attempt(folder)
        generator.is_busy = False
        with suppress(OSError):
            connection.send(outcome)


def _received(connection: Connection) -> Path | None:
    """The next job; None when the server is gone."""
    try:
        return Path(connection.recv())
    except (EOFError, OSError):
        return None


def generate_once(folder: str, computing: Computing) -> Finished:
    """Generate one job, as a task of a cluster; the weights stay loaded in the process for the next one."""
    from llrag_cli.serve.generation import Generator

    if computing not in _generators:
        _generators.clear()
        _generators[computing] = Generator(computing)
    return _generators[computing].attempt(Path(folder))


_generators: dict[Computing, Generator] = {}
