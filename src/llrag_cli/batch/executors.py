"""Engines that run many jobs: in several processes, or on a Ray cluster.

A job is a picklable argument of a module-level function. If a worker dies, its job is given to another, which resumes
it after the last committed block.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from signal import SIG_IGN, SIGINT, SIGTERM, signal
from threading import current_thread, main_thread
from typing import Any, Generic, Protocol, TypeVar

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.signals import STOPPING, end_with_parent, handlers_kept, interrupts

if sys.platform != "win32":
    from signal import SIG_BLOCK, SIG_SETMASK, SIGHUP, pthread_sigmask

Job = TypeVar("Job")
Result = TypeVar("Result")
TRIES = 4  # workers that one job may crash
TICK = 0.3  # seconds between updates of the progress
PATIENCE = 20.0  # seconds that workers have to finish the files of their runs when they are stopped


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """How a job, by its number, ended: with its result or an error."""

    number: int
    result: Result | None
    error: LlragError | None = None


class Engine(Protocol):
    """Runs jobs and yields their outcomes as they end; ``on_tick`` is called while it waits.

    Close the generator to stop the workers.
    """

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Generator[Outcome[Result], None, None]: ...


def parse_engine(address: str) -> Engine | None:
    """The engine of an address; None for ``local``, which is this process.

    ``local:N`` is N processes, ``ray`` a cluster of this machine, ``ray:ADDRESS`` an existing one. ``ray?gpus=0.5``
    reserves half a GPU for each job; by default it is one, if the cluster has any.
    """
    if match := re.fullmatch(r"local(?::([1-9]\d{0,3}))?", address):
        count = int(match[1] or 1)
        return Processes(count) if count > 1 else None
    if match := re.fullmatch(r"ray(?::([^?]+))?(?:\?gpus=(\d+(?:\.\d+)?))?", address):
        gpus = None if match[2] is None else float(match[2])
        if gpus is None or gpus <= 1 or gpus.is_integer():
            return RayCluster(match[1], gpus=gpus)
        raise UsageError(f"`{address}`: {gpus:g} GPUs cannot be reserved", hint="use a share of one, or whole GPUs")
    raise UsageError(
        f"unknown engine `{address}`",
        hint="`local`, `local:2` for two processes, `ray`, `ray:ADDRESS`, or `ray?gpus=0.5` for half a GPU per job",
    )


def attempt(work: Callable[[Job], Result], number: int, job: Job) -> Outcome[Result]:
    """Run a job; an error that the user can fix becomes part of the outcome."""
    try:
        return Outcome(number, work(job))
    except LlragError as error:
        return Outcome(number, None, error)


def crashed(number: int) -> Outcome[Any]:
    """The outcome of a job that no worker survived."""
    return Outcome(
        number,
        None,
        LlragError(f"the job crashed {TRIES} workers", hint="is there enough memory? finished blocks are kept"),
    )


class Processes:
    """Several processes on this machine, which share its cores and end with the process that started them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Generator[Outcome[Result], None, None]:
        """As ``Engine.run``."""
        left = dict.fromkeys(range(len(jobs)), 0)  # job number: workers that died while it was running
        while left:
            with _ignore_interrupts():  # also by the process with which multiprocessing tracks its semaphores
                pool = ProcessPoolExecutor(
                    min(self.count, len(left)),
                    mp_context=get_context("spawn"),
                    initializer=begin_worker,
                    initargs=(self.count,),
                )
            try:
                with _ignore_interrupts():
                    futures: dict[Future[Outcome[Result]], int] = {
                        pool.submit(attempt_in_worker, work, number, jobs[number]): number for number in left
                    }
                for outcome in _finished(futures, on_tick):
                    del left[outcome.number]
                    yield outcome
            except BrokenProcessPool:
                _stop(active_children())  # they let go of their run folders
                for number in left:  # which job was at fault is not known
                    left[number] += 1
                for number in [number for number, count in left.items() if count >= TRIES]:
                    del left[number]
                    yield crashed(number)
            except BaseException:
                _stop(active_children())
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _stop(workers: Sequence[BaseProcess]) -> None:
    """End workers: they have some time to finish the files of their runs; committed blocks are safe in any case."""
    try:
        for worker in workers:
            worker.terminate()
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
    finally:  # also if a second Ctrl-C ends the waiting
        for worker in workers:
            worker.kill()


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Processes started here ignore SIGINT and SIGHUP, which a terminal sends to its whole process group.

    SIGHUP is blocked, which they inherit, so that this process hears of it afterwards.
    """
    if current_thread() is not main_thread():
        yield
        return
    before, blocked = signal(SIGINT, SIG_IGN), None
    if sys.platform != "win32":
        blocked = pthread_sigmask(SIG_BLOCK, [SIGHUP])
    try:
        yield
    finally:
        signal(SIGINT, before)
        if sys.platform != "win32" and blocked is not None:
            pthread_sigmask(SIG_SETMASK, blocked)


def _finished(futures: dict[Future[Outcome[Result]], int], on_tick: Callable[[], None]) -> Iterator[Outcome[Result]]:
    while futures:
        done, _ = wait(futures, timeout=TICK, return_when=FIRST_COMPLETED)
        on_tick()
        for future in done:
            del futures[future]
            yield future.result()


def begin_worker(processes: int) -> None:
    """Prepare a worker: it ends with its parent, which alone hears of Ctrl-C and of a closed terminal."""
    end_with_parent()
    for each in (SIGINT, *STOPPING):
        if each != SIGTERM:
            signal(each, SIG_IGN)
    share_cores(processes)


def attempt_in_worker(work: Callable[[Job], Result], number: int, job: Job) -> Outcome[Result]:
    """As ``attempt``; SIGTERM, by which the parent stops a worker, ends the job as Ctrl-C does, and then the worker."""
    try:
        with interrupts([SIGTERM], together=math.inf):
            return attempt(work, number, job)
    except KeyboardInterrupt:
        os._exit(128 + SIGTERM)


def share_cores(processes: int) -> None:
    """Limit torch to this process's share of the cores."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def require_reachable(address: str) -> None:
    """Raise an error unless ``HOST:PORT`` accepts connections; Ray itself would retry for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # a name that Ray resolves, such as `auto`
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise LlragError(
            f"no Ray cluster at `{address}`: {(error.strerror or str(error)).lower()}",
            hint="start a Ray cluster there, or name the address of another one",
        ) from error


class RayCluster:
    """A Ray cluster: an existing one, or one of this machine's cores and GPUs."""

    def __init__(self, address: str | None, *, gpus: float | None) -> None:
        self.address, self.gpus = address, gpus

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job], *, on_tick: Callable[[], None]
    ) -> Generator[Outcome[Result], None, None]:
        """As ``Engine.run``; Ray retries the job of a dead worker."""
        with self.connected() as ray:
            remote: Any = ray.remote(num_cpus=1, num_gpus=self.gpus_of_a_job(ray), max_retries=TRIES - 1)(attempt)
            waiting = {remote.remote(work, number, job): number for number, job in enumerate(jobs)}
            while waiting:
                with redirect_stdout(sys.stderr):  # Ray prints messages about dead workers
                    done, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK)
                on_tick()
                for reference in done:
                    number = waiting.pop(reference)
                    try:
                        yield ray.get(reference)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        yield crashed(number)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The module of Ray, connected to the cluster in this context."""
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed", hint="`pip install 'llrag[cluster]'`") from None
        if self.address is not None:
            require_reachable(self.address)
        try:
            with handlers_kept():  # Ray's own for SIGTERM would end this process at once
                ray.init(
                    address=self.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise LlragError(
                f"no Ray cluster at `{self.address}`: {str(error).splitlines()[0]}",
                hint="start a Ray cluster there, or name the address of another one",
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()

    def gpus_of_a_job(self, ray: Any) -> float:
        """GPUs that each job has: those that were asked for, or else one if the cluster has any."""
        if self.gpus is not None:
            return self.gpus
        return float(ray.cluster_resources().get("GPU", 0) > 0)
