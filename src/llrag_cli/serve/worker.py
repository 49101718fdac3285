"""The process that generates, as it is started by a server.

Jobs are told to it by the paths of their folders; all else is in ``job.json``, which it reads again before each block:
that is how it learns of pauses, cancellation and new prompts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llrag_cli.batch.executors import begin_worker
from llrag_cli.serve.jobs import Ended, Finished
from llrag_cli.serve.outlook import Answered, MemoryQuestion, SpeedQuestion
from llrag_cli.serve.settings import Computing

if TYPE_CHECKING:
    from llrag_cli.serve.answers import Answers
    from llrag_cli.serve.generation import Generator


@dataclass(frozen=True)
class Interrupt:
    """A message to a worker: there is a job, so it shall leave the question open that it is working on."""


def serve_jobs(connection: Connection, computing: Computing, processes: int, model: str) -> None:
    """Generate the jobs that are sent, and send how each ended, until the connection is closed.

    The embedded model is loaded at once, if it is the default ``model``. SIGTERM ends jobs before their next block,
    with their files complete, and then the process.
    """
    begin_worker(processes)
    from llrag_cli.serve.answers import Answers  # torch is imported here
    from llrag_cli.serve.generation import Generator

    generator = Generator(computing)

    def stop(number: int, frame: FrameType | None) -> None:
        if not generator.is_busy:
            os._exit(128 + number)
        generator.is_stopping = True  # an exception could be raised where it is lost

    signal.signal(signal.SIGTERM, stop)
    talk = _Talk(connection, generator, Answers(generator))
    generator.on_block = talk.between_blocks
    generator.warm_up(model)
    while not generator.is_stopping and (message := talk.received()) is not None:
        talk.take(message)


class _Talk:
    """The connection with the server."""

    def __init__(self, connection: Connection, generator: Generator, answers: Answers) -> None:
        self._connection, self._generator, self._answers = connection, generator, answers

    def received(self) -> Any:
        """The next message; None when the server is gone."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def take(self, message: Any) -> None:
        """Do what a message asks for: generate jobs, or answer a question."""
        if isinstance(message, MemoryQuestion | SpeedQuestion):
            answer = self._answers.answer(message, interrupted=self._connection.poll)
            self._send(Answered(message, answer))
        elif not isinstance(message, Interrupt):  # one that came too late
            for folder, finished in self._generator.attempt([Path(each) for each in message]):
                self._send(Ended(str(folder), finished))
            self._generator.is_busy = False

    def between_blocks(self) -> None:
        """Answer questions that take no time, while there are jobs."""
        while self._connection.poll():
            if (message := self.received()) is None:  # the server was killed
                self._generator.is_stopping = True
                return
            self.take(message)

    def _send(self, message: Any) -> None:
        with suppress(OSError):
            self._connection.send(message)


def generate_once(folders: Sequence[str], computing: Computing) -> list[Finished]:
    """Generate jobs, as a task of a cluster; the weights stay loaded in the process for the next one."""
    from llrag_cli.serve.generation import Generator

    if computing not in _generators:
        _generators.clear()
        _generators[computing] = Generator(computing)
    ended = dict(_generators[computing].attempt([Path(folder) for folder in folders]))
    return [ended[Path(folder)] for folder in folders]


_generators: dict[Computing, Generator] = {}
