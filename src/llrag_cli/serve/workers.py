"""Worker processes, and the threads that hand them jobs: the death of a worker is a failed job, not a dead server."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from llrag_cli.serve.jobs import Finished, JobError
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import ServeSettings
from llrag_cli.serve.worker import generate_once, serve_jobs

TICK = 0.2  # seconds
PATIENCE = 60.0  # seconds in which a worker must end a block, when its video is paused or cancelled
ENDING = 20.0  # seconds in which a worker must finish its files, when the server ends
HINT = "is there enough memory? finished blocks are kept, and the video can be resumed"
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

    def generate(self, queue: Queue, video: Video) -> Finished | JobError | None:
        """Let the process generate a video; an error if it crashed, None if it was ended on purpose."""
        self.start()
        assert self._connection is not None and self._process is not None
        unwanted: float | None = None  # since when
        try:
            self._connection.send(str(video.folder))
            while not self._connection.poll(TICK):
                now = time.monotonic()
                if queue.closing:
                    self.stop()
                    return None
                if video.job is None or video.job.wanted == "run":
                    unwanted = None
                elif unwanted is None:
                    unwanted = now
                elif now - unwanted > PATIENCE:
                    self._process.kill()
                    self._process.join()
                    return None
            finished: Finished = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            if queue.closing or (video.job is not None and video.job.wanted != "run"):
                return None
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return JobError(
                code="worker_died",
                message=f"the worker process {how}",
                hint=HINT,
            )
        else:
            return finished

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

    def generate(self, queue: Queue, video: Video) -> Finished | JobError | None:
        """As ``Worker.generate``."""
        exceptions = self._ray.exceptions
        reference = self._task.remote(str(video.folder), self._computing)
        while not self._ray.wait([reference], timeout=TICK)[0]:
            if queue.closing:
                self._ray.cancel(reference)  # as Ctrl-C
                self._ray.wait([reference], timeout=ENDING)
                return None
        try:
            finished: Finished = self._ray.get(reference)
        except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError, exceptions.RayTaskError) as error:
            reason = str(error).strip().splitlines()[-1]
            return JobError(code="worker_died", message=f"the worker of the cluster failed: {reason}", hint=HINT)
        return finished

    def stop(self) -> None:
        """Nothing: the tasks have ended."""


class Workers:
    """Some workers, each with a thread that takes the next job of the queue."""

    def __init__(self, queue: Queue, settings: ServeSettings) -> None:
        self._queue, self._settings = queue, settings
        self._connected = ExitStack()
        self._workers: list[Worker | RayWorker] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to generate what is in the queue."""
        settings = self._settings
        if settings.cluster is None:
            self._workers = [Worker(settings) for _ in range(settings.workers)]
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
        while (video := self._queue.take()) is not None:
            ended = worker.generate(self._queue, video)
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


def _places(ray: Any, gpus: float) -> int:
    """How many jobs a cluster has room for at the same time."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 1)))
