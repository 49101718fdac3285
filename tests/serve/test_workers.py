"""Workers in a Ray cluster, with a cluster that is made up: what the server asks of it, and what its deaths become."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llrag_cli.batch.executors import RayCluster
from llrag_cli.serve.jobs import Finished, JobError
from llrag_cli.serve.outlook import Outlook
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import Limits, ServeSettings
from llrag_cli.serve.workers import End, RayWorker, Workers


class WorkerCrashedError(Exception):
    """As Ray has it."""


class Cluster:
    """A Ray whose tasks end with ``result``, after some looks."""

    exceptions = SimpleNamespace(
        WorkerCrashedError=WorkerCrashedError, OutOfMemoryError=MemoryError, RayTaskError=RuntimeError
    )

    def __init__(self, result: Any, *, looks: int = 2, resources: dict[str, float] | None = None) -> None:
        self.result, self.looks, self.resources = result, looks, resources or {"CPU": 2.0}
        self.options: dict[str, Any] = {}
        self.cancelled = False

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda work: SimpleNamespace(remote=lambda folders, computing: (work.__name__, folders))

    def wait(self, references: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        self.looks -= 1
        return (references, []) if self.looks < 0 or self.cancelled else ([], references)

    def cancel(self, reference: Any) -> None:
        self.cancelled = True

    def get(self, reference: Any) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def worker(cluster: Cluster, tmp_path: Path, *, gpus: float | None = None) -> tuple[RayWorker, Queue]:
    settings = ServeSettings(runs=tmp_path, cluster=RayCluster(None, gpus=gpus))
    return RayWorker(settings, cluster), Queue(tmp_path, Limits())


def ended_of(made: RayWorker, queue: Queue, folder: Path) -> list[End]:
    """How a video ended."""
    return [ended for _, ended in made.generate(queue, Outlook(queue.wake), [Video("video_x", folder)])]


def test_a_job_is_a_task_that_ray_does_not_retry(tmp_path: Path) -> None:
    cluster = Cluster([Finished()], resources={"CPU": 8.0, "GPU": 2.0})
    made, queue = worker(cluster, tmp_path)
    assert ended_of(made, queue, tmp_path) == [Finished()]
    assert cluster.options == {"num_cpus": 1, "num_gpus": 1.0, "max_retries": 0}  # the server decides what is retried


@pytest.mark.parametrize("error", [WorkerCrashedError("it died"), MemoryError("no memory"), RuntimeError("a\nbug")])
def test_the_death_of_a_task_is_a_failed_job(tmp_path: Path, error: Exception) -> None:
    made, queue = worker(Cluster(error), tmp_path)
    (ended,) = ended_of(made, queue, tmp_path)
    assert isinstance(ended, JobError) and ended.code == "worker_died"
    assert str(error).splitlines()[-1] in ended.message


def test_a_server_that_ends_interrupts_its_tasks(tmp_path: Path) -> None:
    cluster = Cluster([Finished()], looks=10**9)
    made, queue = worker(cluster, tmp_path)
    queue.close()
    assert ended_of(made, queue, tmp_path) == [None] and cluster.cancelled


@pytest.mark.parametrize(
    ("resources", "gpus", "places"),
    [({"CPU": 8.0}, None, 8), ({"CPU": 8.0, "GPU": 2.0}, None, 2), ({"CPU": 8.0, "GPU": 2.0}, 0.5, 4), ({}, None, 1)],
)
def test_as_many_jobs_run_as_a_cluster_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], gpus: float | None, places: int
) -> None:
    from contextlib import nullcontext

    cluster = Cluster([Finished()])
    cluster.resources = resources
    monkeypatch.setattr(RayCluster, "connected", lambda _: nullcontext(cluster))
    queue = Queue(tmp_path, Limits())
    workers = Workers(queue, Outlook(queue.wake), ServeSettings(runs=tmp_path, cluster=RayCluster(None, gpus=gpus)))
    workers.start()
    try:
        assert len(workers._workers) == places
    finally:
        workers.close()
