"""What the routes share: the settings, the queue, pictures, and those who follow videos."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llrag_cli.files.durable import create_folder
from llrag_cli.serve.jobs import Job
from llrag_cli.serve.live import Followers
from llrag_cli.serve.objects import video_object
from llrag_cli.serve.pictures import Pictures
from llrag_cli.serve.plans import Plan, Upload
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import ServeSettings


@dataclass
class Service:
    """One server's state."""

    settings: ServeSettings
    queue: Queue
    pictures: Pictures = field(default_factory=Pictures)
    followers: Followers = field(init=False)

    def __post_init__(self) -> None:
        self.followers = Followers(self.queue)

    def show(self, video: Video) -> dict[str, Any]:
        """A video as clients see it, as it is now."""
        video.view.refresh()
        return video_object(self.queue, video)

    def accept(self, plan: Plan, upload: Upload | None = None) -> list[Video]:
        """Put the jobs of a plan into the queue, each with a copy of the file that was uploaded."""
        if not self.settings.workers:
            raise ApiError(
                503, "this server shows videos, and generates none", code="view_only",
                hint="another server uses this folder of runs; send the request to that one",
            )  # fmt: skip
        self.queue.require_room(len(plan.jobs))
        jobs = [job if upload is None else self._with_copy(job, upload) for job in plan.jobs]
        return self.queue.add(jobs)

    def _with_copy(self, job: Job, upload: Upload) -> Job:
        folder = self.queue.runs / job.id
        create_folder(folder)
        copy = folder / f"input{upload.path.suffix}"
        shutil.copyfile(upload.path, copy)
        return _replaced(job, upload.path, copy)

    def resolve(self, identifier: str) -> Path:
        """The files of a character, or the folder of a video, by its identifier. Raises ``ApiError``."""
        raise ApiError(
            404, f"no character or video `{identifier[:80]}`", code="reference_not_found", param="references"
        )


def _replaced(job: Job, before: Path, now: Path) -> Job:
    """A job whose opening picture or clip is another file."""
    if job.image == before:
        return job.model_copy(update={"image": now})
    if job.scene is None:
        return job
    changes = {key: now for key in ("image", "video") if getattr(job.scene, key) == before}
    return job.model_copy(update={"scene": job.scene.model_copy(update=changes)})


def together(videos: Sequence[Video]) -> list[str]:
    """The identifiers of videos."""
    return [video.id for video in videos]
