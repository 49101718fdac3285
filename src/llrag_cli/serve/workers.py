"""Worker processes, and the threads that hand them jobs: the death of a worker is a failed job, not a dead server."""

from __future__ import annotations

import logging
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from llrag_cli.serve.jobs import Finished, JobError
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import ServeSettings
from llrag_cli.serve.worker import serve_jobs

TICK = 0.2  # seconds
PATIENCE = 60.0  # seconds in which a worker must end a block, when its video is paused or cancelled
ENDING = 20.0  # seconds in which a worker must finish its files, when the server ends
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
        """Let the process generate a video; an error if it died of it, None if it was ended on purpose."""
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
                hint="is there enough memory? finished blocks are kept, and the video can be resumed",
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


class Workers:
    """Some workers, each with a thread that takes the next job of the queue."""

    def __init__(self, queue: Queue, settings: ServeSettings) -> None:
        self._queue = queue
        self._workers = [Worker(settings) for _ in range(settings.workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"worker-{number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]

    def start(self) -> None:
        """Begin to generate what is in the queue."""
        for worker in self._workers:
            worker.start()  # it gets ready meanwhile
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all workers; what they were generating continues when a server is started again."""
        self._queue.close()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.stop()

    def _run(self, worker: Worker) -> None:
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
