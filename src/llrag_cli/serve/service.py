"""What the routes share: the settings, the queue, pictures, and those who follow videos."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.durable import create_folder, replacing
from llrag_cli.scenes.sources import latent_frames_of
from llrag_cli.serve.characters import find_character
from llrag_cli.serve.jobs import Job, Switch, new_id, renewed
from llrag_cli.serve.live import Followers
from llrag_cli.serve.objects import config_of, timeline_of, video_object
from llrag_cli.serve.outlook import Outlook
from llrag_cli.serve.pictures import Pictures
from llrag_cli.serve.plans import (
    SECONDS,
    Fields,
    Plan,
    Upload,
    plan,
    require_model,
    require_prompt,
    require_understood,
    require_words,
)
from llrag_cli.serve.problems import ApiError, refused
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import ServeSettings
from llrag_cli.serve.uploads import decoded

Result = TypeVar("Result")
STOPPING = 90.0  # seconds that a video has to stop before it is deleted


@dataclass
class Service:
    """One server's state."""

    settings: ServeSettings
    queue: Queue
    outlook: Outlook = field(init=False)
    pictures: Pictures = field(default_factory=Pictures)
    followers: Followers = field(init=False)
    _few: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(3))

    def __post_init__(self) -> None:
        self.followers = Followers(self.queue)
        self.outlook = Outlook(self.queue.wake)

    async def aside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run what takes long, such as ffmpeg, in one of a few threads that nothing else waits for."""
        return await run_sync(partial(work, *arguments), limiter=self._few)

    def show(self, video: Video) -> dict[str, Any]:
        """A video as clients see it, as it is now."""
        video.view.refresh()
        return video_object(self.queue, video)

    def accept(self, plan: Plan, upload: Upload | None = None) -> list[Video]:
        """Put the jobs of a plan into the queue, each with a copy of the file that was uploaded."""
        self.queue.require_writable()
        self.queue.require_room(len(plan.jobs))
        jobs = [job if upload is None else self._with_copy(job, upload) for job in plan.jobs]
        return self.queue.add(jobs)

    def _with_copy(self, job: Job, upload: Upload) -> Job:
        folder = self.queue.runs / job.id
        create_folder(folder)
        copy = folder / f"input{upload.path.suffix}"
        with replacing(copy) as partial:
            shutil.copyfile(upload.path, partial)
        return _replaced(job, upload.path, copy)

    def resolve(self, identifier: str) -> Path:
        """The file of a character, or the folder of a video, by its identifier. Raises ``ApiError``."""
        if (found := find_character(self.settings.runs, identifier)) is not None:
            return found[1]
        try:
            return self.queue.get(identifier).folder
        except ApiError:
            raise ApiError(
                404, f"no character or video `{identifier[:80]}`", code="reference_not_found", param="references",
                hint="name the identifier of a character or video; paths are not read",
            ) from None  # fmt: skip

    def plan(self, fields: Fields, file: BinaryIO | None, *, field: str = "input_reference") -> list[Video]:
        """Accept a request for videos, with the file it came with."""
        if fields.prompt is not None:
            fields = fields.model_copy(update={"prompt": require_prompt(fields.prompt, self.settings)})
        if file is None:
            return self.accept(plan(fields, self.settings, self.resolve))
        config = plan(fields, self.settings, self.resolve).jobs[0].config
        with decoded(
            file, param=field, kinds=("picture", "clip"), config=config, seconds=self.settings.limits.seconds
        ) as upload:
            return self.accept(plan(fields, self.settings, self.resolve, upload=upload), upload)

    def extend_file(self, fields: Fields, file: BinaryIO) -> list[Video]:
        """A new video that goes on from a clip, by as many seconds as are asked for."""
        prompt = require_prompt(fields.prompt, self.settings)
        config = plan(fields, self.settings, self.resolve).jobs[0].config
        with decoded(
            file, param="video", kinds=("clip",), config=config, seconds=self.settings.limits.seconds
        ) as upload:
            size = config.backbone.frames_per_block
            frames = size * (latent_frames_of(upload.path, config) // size)
            given = config.video_frames(frames) / config.backbone.fps if frames else 0.0
            added = SECONDS if fields.seconds is None else fields.seconds
            longer = fields.model_copy(update={"prompt": prompt, "seconds": given + added})
            return self.accept(plan(longer, self.settings, self.resolve, upload=upload), upload)

    def remix(self, video: Video, prompt: str, *, seed: int | None) -> Video:
        """A new video like another one, under another prompt: with its settings, its seed and its length."""
        config, timeline = config_of(video), timeline_of(video)
        if config is None or timeline is None:
            raise ApiError(409, "the settings of this video cannot be read", code="damaged")
        config = renewed(config)
        require_model(config.name, self.settings)
        own = video.view.record.seed if video.view.record else video.job.seed if video.job else 0
        job = Job(
            id=new_id(),
            number=0,
            created_at=time.time(),
            config=config,
            prompt=require_prompt(prompt, self.settings),
            seconds=timeline.seconds,
            seed=own if seed is None else seed,
            remixed_from=video.id,
        )
        try:
            require_understood(config, job.planned())
        except UsageError as error:
            raise refused(error, param="prompt") from None
        image = timeline.shots[0].image
        if image is None:
            return self.accept(Plan((job,), job.planned()))[0]
        upload = Upload(image, "picture")
        if not image.is_file():
            raise ApiError(409, "the picture that opens this video is gone", code="reference_not_found")
        opening = job.model_copy(update={"image": image})
        return self.accept(Plan((opening,), opening.planned()), upload)[0]

    def switch(self, video: Video, prompt: str, *, cut: bool) -> Switch:
        """Ask for another prompt from the next block of a video on."""
        return self.queue.switch(video, self.require_prompt(video, prompt), cut=cut)

    def require_prompt(self, video: Video, prompt: str) -> str:
        """A prompt for the next part of a video; raises ``ApiError`` for one that its model cannot read."""
        prompt, config = require_prompt(prompt, self.settings), config_of(video)
        if config is not None:
            try:
                require_words(config, [prompt])
            except UsageError as error:
                raise refused(error, param="prompt") from None
        return prompt

    def frame(self, video: Video, latent_frame: int) -> bytes | None:
        """A small picture of the first video frame of a latent frame; those of references have negative numbers."""
        config, timeline = config_of(video), timeline_of(video)
        if config is None or timeline is None:
            return None
        if latent_frame >= 0:
            if latent_frame >= len(video.view.blocks) * timeline.frames_per_block:
                return None
            return self.pictures.frame(
                video.view.folder.video, _first_frame(config, latent_frame), fps=config.backbone.fps
            )
        for reference in timeline.references:
            span = timeline.reference_frames[reference.name]
            if latent_frame in span and reference.path.resolve().is_relative_to(self.settings.runs.resolve()):
                path = reference.path / "video.mp4" if reference.path.is_dir() else reference.path
                number = _first_frame(config, latent_frame - span.start)
                return self.pictures.frame(path, number, fps=config.backbone.fps)
        return None

    def delete(self, video: Video) -> None:
        """Remove a video; one that is being generated is stopped before."""
        self.queue.require_removable(video)
        if video.job is not None and video.job.outcome is None:
            self.queue.cancel(video)
        if not self.queue.wait_until(lambda: not video.running, seconds=STOPPING):
            raise ApiError(409, "the video is still being stopped", code="busy", hint="ask again a little later")
        self.queue.remove(video)


def _first_frame(config: RunConfig, latent_frame: int) -> int:
    """The first video frame of a latent frame."""
    return config.video_frames(latent_frame) if latent_frame else 0


def _replaced(job: Job, before: Path, now: Path) -> Job:
    """A job whose opening picture or clip is another file."""
    if job.image == before:
        return job.model_copy(update={"image": now})
    if job.scene is None:
        return job
    changes = {key: now for key in ("image", "video") if getattr(job.scene, key) == before}
    return job.model_copy(update={"scene": job.scene.model_copy(update=changes)})
