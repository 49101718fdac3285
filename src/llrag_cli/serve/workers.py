"""Worker processes, and the threads that hand them jobs: the death of a worker is a failed job, not a dead server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from llrag_cli.serve.jobs import Finished, JobError
from llrag_cli.serve.outlook import Answer, Answered, Outlook, Question
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import ServeSettings
from llrag_cli.serve.worker import Interrupt, generate_once, serve_jobs

TICK = 0.2  # seconds
PATIENCE = 60.0  # seconds in which a worker must end a block, when its video is paused or cancelled
ENDING = 20.0  # seconds in which a worker must finish its files, when the server ends
HINT = "is there enough memory? finished blocks are kept, and the video can be resumed"
End = Finished | JobError | None  # of a job in a worker
log = logging.getLogger(__name__)


class Worker:
    """One process, which is started when it is needed and kept for the next job."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process, unless it is there."""
        if self._process is not None and self._process.is_alive():
            return
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve_jobs,
            args=(theirs, self._settings.computing, self._settings.workers, self._settings.models[0]),
            name="llrag-worker",
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def generate(self, queue: Queue, outlook: Outlook, videos: Sequence[Video]) -> Iterator[tuple[Video, End]]:
        """Let the process generate videos, and yield how each ended: an error if it crashed, None if ended on purpose.

        Meanwhile it answers questions that take no time.
        """
        self.start()
        assert self._connection is not None and self._process is not None
        left = {str(video.folder): video for video in videos}
        unwanted: dict[str, float] = {}  # since when
        try:
            self._connection.send([*left])
            while left:
                while not self._connection.poll(TICK):
                    unwanted = {name: unwanted.get(name, time.monotonic()) for name in left if _unwanted(left[name])}
                    if queue.closing:
                        self.stop()
                    elif any(time.monotonic() - since > PATIENCE for since in unwanted.values()):
                        self._process.kill()
                        self._process.join()
                    else:
                        if question := outlook.next(quick=True):
                            self._connection.send(question)
                        continue
                    yield from ((video, None) for video in left.values())
                    return
                message = self._connection.recv()
                if isinstance(message, Answered):
                    outlook.keep(message)
                else:
                    yield left.pop(message.folder), message.finished
        except (EOFError, OSError):
            error = self._death(outlook)
            for video in left.values():
                yield video, None if queue.closing or _unwanted(video) else error

    def answer(self, queue: Queue, outlook: Outlook, question: Question) -> None:
        """Let the process answer a question, unless a video comes."""
        self.start()
        assert self._connection is not None and self._process is not None
        interrupted = False
        try:
            self._connection.send(question)
            while outlook.is_asked(question):
                if self._connection.poll(TICK):
                    outlook.keep(self._connection.recv())  # or of a question that was asked while there were jobs
                elif queue.closing:
                    self.stop()
                    return
                elif not interrupted and queue.waiting():
                    interrupted = True
                    self._connection.send(Interrupt())
        except (EOFError, OSError):
            log.warning("a question was not answered: %s", self._death(outlook).message)
            outlook.keep(Answered(question, Answer()))  # it is not asked again

    def _death(self, outlook: Outlook) -> JobError:
        """What the process died of; it will not answer any more."""
        assert self._process is not None
        outlook.reopen()
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return JobError(code="worker_died", message=f"the worker process {how}", hint=HINT)

    def stop(self) -> None:
        """End the process; it has some time to finish the files of its run, of which nothing is lost in any case."""
        process = self._process
        if process is None:
            return
        process.terminate()
        process.join(ENDING)
        process.kill()
        process.join()


class RayWorker:
    """A place in a Ray cluster that one job at a time has; each is a task of its own."""

    def __init__(self, settings: ServeSettings, ray: Any) -> None:
        assert settings.cluster is not None
        self._computing, self._ray = settings.computing, ray
        gpus = settings.cluster.gpus_of_a_job(ray)
        self._task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(generate_once)

    def start(self) -> None:
        """Nothing: Ray starts processes as they are needed."""

    def generate(self, queue: Queue, outlook: Outlook, videos: Sequence[Video]) -> Iterator[tuple[Video, End]]:
        """As ``Worker.generate``; all end together, and no question is answered."""
        yield from zip(videos, self._ended(queue, videos), strict=True)

    def _ended(self, queue: Queue, videos: Sequence[Video]) -> Sequence[End]:
        exceptions = self._ray.exceptions
        reference = self._task.remote([str(video.folder) for video in videos], self._computing)
        while not self._ray.wait([reference], timeout=TICK)[0]:
            if queue.closing:
                self._ray.cancel(reference)  # as Ctrl-C
                self._ray.wait([reference], timeout=ENDING)
                return [None] * len(videos)
        try:
            finished: list[Finished] = self._ray.get(reference)
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.RayTaskError) as error:
            reason = str(error).strip().splitlines()[-1]
            message = f"the worker of the cluster failed: {reason}"
            return [JobError(code="worker_died", message=message, hint=HINT)] * len(videos)
        return finished

    def answer(self, queue: Queue, outlook: Outlook, question: Question) -> None:
        """Nothing: a machine of the cluster would have to be reserved for it."""

    def stop(self) -> None:
        """Nothing: the tasks have ended."""


class Workers:
    """Some workers, each with a thread that takes the next job of the queue, or a question while there is none."""

    def __init__(self, queue: Queue, outlook: Outlook, settings: ServeSettings) -> None:
        self._queue, self._outlook, self._settings = queue, outlook, settings
        self._connected = ExitStack()
        self._workers: list[Worker | RayWorker] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to generate what is in the queue."""
        settings = self._settings
        if settings.cluster is None:
            self._workers = [Worker(settings) for _ in range(settings.workers)]
            self._outlook.is_answered = settings.workers > 0
        else:
            ray = self._connected.enter_context(settings.cluster.connected())
            places = _places(ray, settings.cluster.gpus_of_a_job(ray))
            self._workers = [RayWorker(settings, ray) for _ in range(places)]
        for number, worker in enumerate(self._workers):
            worker.start()  # it gets ready meanwhile
            thread = threading.Thread(target=self._run, args=(worker,), name=f"worker-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End all workers; what they were generating continues when a server is started again."""
        self._queue.close()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.stop()
        self._connected.close()

    def _run(self, worker: Worker | RayWorker) -> None:
        while (work := self._queue.take(self._outlook.next)) is not None:
            if isinstance(work, list):
                for video, ended in worker.generate(self._queue, self._outlook, work):
                    self._finish(video, ended)
            else:
                worker.answer(self._queue, self._outlook, work)

    def _finish(self, video: Video, ended: End) -> None:
        if ended is None:
            self._queue.finish(video, stopped=True)
        elif isinstance(ended, JobError):
            log.warning("%s: %s", video.id, ended.message)
            self._queue.finish(video, error=ended)
        else:
            error = None
            if ended.problem is not None:
                error = JobError(code="generation_failed", message=ended.problem, hint=ended.hint)
            self._queue.finish(video, stopped=ended.stopped, error=error)


def _unwanted(video: Video) -> bool:
    """Whether a video was paused, cancelled or deleted."""
    return video.job is not None and video.job.wanted != "run"


def _places(ray: Any, gpus: float) -> int:
    """How many jobs a cluster has room for at the same time."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)))
