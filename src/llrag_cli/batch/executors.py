"""Where many videos are made: one after the other here, in several processes, or on a Ray cluster.

Jobs are made by a function at the top of a module, from what can be pickled. A worker that dies is no loss: its job is
given to another, and jobs go on from what they had committed.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from signal import SIG_IGN, SIGINT, signal
from threading import current_thread, main_thread
from typing import Any, Generic, Protocol, TypeVar

from llrag_cli.errors import LlragError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")
TRIES = 4  # workers that one job may lose
TICK = 0.3  # seconds between looks at progress


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What came of the job of a number: a result, or the sentence and hint of what went wrong."""

    number: int
    result: Result | None
    problem: str | None = None
    hint: str = ""


class Engine(Protocol):
    """Makes jobs, in any order; ``on_tick`` is called while it waits."""

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Iterator[Outcome[Result]]: ...


def parse_engine(text: str, *, gpus: float | None = None) -> Engine | None:
    """``local`` (None: in this process), ``local:N`` (N processes), ``ray`` or ``ray:ADDRESS``.

    ``gpus`` is the share of a GPU that Ray sets aside for each job; None is one where the cluster has any.
    """
    kind, _, rest = text.partition(":")
    if kind == "local" and re.fullmatch(r"[1-9]\d*|", rest) and gpus is None:
        return Processes(int(rest)) if rest not in ("", "1") else None
    if kind == "ray" and (rest or text == "ray") and (gpus is None or gpus >= 0):
        return RayCluster(rest or None, gpus=gpus)
    raise UsageError(
        f"there is no engine `{text}`" if gpus is None else f"the engine `{text}` takes no share of {gpus:g} GPUs",
        hint="`local`, `local:2` for two processes, `ray`, or `ray:ADDRESS`, with `--gpus-per-video` if need be",
    )


def attempt(work: Callable[[Job], Result], number: int, job: Job) -> Outcome[Result]:
    """Do a job; an error for the user becomes part of the outcome."""
    try:
        return Outcome(number, work(job))
    except LlragError as error:
        return Outcome(number, None, error.problem, error.hint)


def lost(number: int) -> Outcome[Any]:
    """The outcome of a job that no worker survived."""
    return Outcome(
        number, None, f"{TRIES} workers died of it", "is there enough memory? the same command goes on with it"
    )


class Processes:
    """Several processes on this machine, which share its cores."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Iterator[Outcome[Result]]:
        """As ``Engine.run``."""
        left = dict.fromkeys(range(len(jobs)), 0)  # number: workers it has lost
        while left:
            pool = ProcessPoolExecutor(
                min(self.count, len(left)),
                mp_context=get_context("spawn"),
                initializer=share_cores,
                initargs=(self.count,),
            )
            try:
                with _deaf_children():
                    futures: dict[Future[Outcome[Result]], int] = {
                        pool.submit(attempt, work, number, jobs[number]): number for number in left
                    }
                for outcome in _finished(futures, on_tick):
                    del left[outcome.number]
                    yield outcome
            except BrokenProcessPool:
                for number in left:  # which one was at fault is not told
                    left[number] += 1
                for number in [number for number, count in left.items() if count >= TRIES]:
                    del left[number]
                    yield lost(number)
            except (KeyboardInterrupt, GeneratorExit):
                for worker in active_children():  # what they have committed is safe
                    worker.terminate()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started here never hear of Ctrl-C, which a terminal tells all of its processes."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal(SIGINT, SIG_IGN)
    try:
        yield
    finally:
        signal(SIGINT, before)


def _finished(futures: dict[Future[Outcome[Result]], int], on_tick: Callable[[], None]) -> Iterator[Outcome[Result]]:
    while futures:
        done, _ = wait(futures, timeout=TICK, return_when=FIRST_COMPLETED)
        on_tick()
        for future in done:
            del futures[future]
            yield future.result()


def share_cores(processes: int) -> None:
    """Keep to this process's share of the machine's cores."""
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def require_reachable(address: str) -> None:
    """Raise an error unless something answers at ``HOST:PORT``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # a name that Ray resolves, such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise LlragError(
            f"there is no Ray cluster at `{address}`: {(error.strerror or str(error)).lower()}",
            hint="`ray start --head` starts one, and prints its address",
        ) from error


class RayCluster:
    """A Ray cluster: one that is there, or one of this machine's own cores and GPUs."""

    def __init__(self, address: str | None, *, gpus: float | None) -> None:
        self.address, self.gpus = address, gpus

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Iterator[Outcome[Result]]:
        """As ``Engine.run``; Ray gives the job of a dead worker to another."""
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed", hint="`pip install 'llrag[cluster]'`") from None
        if self.address is not None:
            require_reachable(self.address)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise LlragError(
                f"there is no Ray cluster at `{self.address}`: {str(error).splitlines()[0]}",
                hint="`ray start --head` starts one, and prints its address",
            ) from error
        try:
            there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            gpus = self.gpus if self.gpus is not None else float(there.get("GPU", 0) > 0)
            remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=TRIES - 1)(attempt)
            waiting = {remote.remote(work, number, job): number for number, job in enumerate(jobs)}
            while waiting:
                with redirect_stdout(sys.stderr):  # Ray prints what it has to say of dead workers
                    done, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK)
                on_tick()
                for each in done:
                    number = waiting.pop(each)
                    try:
                        yield ray.get(each)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        yield lost(number)
        finally:
            ray.shutdown()
