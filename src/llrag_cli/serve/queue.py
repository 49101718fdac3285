"""The queue: jobs on disk, the order they are generated in, and what clients may ask of them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.files.durable import create_folder
from llrag_cli.runs.folder import RunFolder
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.extension import extended
from llrag_cli.serve.folders import OURS, hide, run_folders, sweep
from llrag_cli.serve.jobs import Job, JobError, Switch, live_number, read_job, write_job
from llrag_cli.serve.outlook import Question
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.settings import Limits
from llrag_cli.serve.views import RunView


class Video:
    """A video as clients see it: its run folder, and its job if it has one."""

    def __init__(self, identifier: str, folder: Path, job: Job | None = None) -> None:
        self.id, self.folder, self.job = identifier, folder, job
        self.view = RunView(folder)
        self.running = False  # in a worker of this server
        self._planned: Timeline | None = None

    @property
    def planned(self) -> Timeline | None:
        """The shots that its job asked for; None if it has no job, or what it uses is gone."""
        if self._planned is None and self.job is not None:
            try:
                self._planned = self.job.planned()
            except LlragError:
                return None
        return self._planned


class Queue:
    """All videos in a folder of runs. Methods may be called from any thread; what they accept is on disk."""

    def __init__(self, runs: Path, limits: Limits, *, read_only: bool = False) -> None:
        self.runs, self.limits, self.read_only = runs, limits, read_only
        self._videos: dict[str, Video] = {}
        self._changed = threading.Condition(threading.RLock())
        self.closing = False
        self._next = 0
        self._idle = 0  # workers that wait for a video
        if not read_only:
            create_folder(runs)
            sweep(runs)
        self.scan()

    # --- finding -----------------------------------------------------------------------------------

    def scan(self) -> None:
        """Take note of runs that other processes have made, and forget those that are gone."""
        with self._changed:
            found = dict(run_folders(self.runs))
            for identifier in self._videos.keys() - found.keys():
                if not self._videos[identifier].running:
                    del self._videos[identifier]
            for identifier, folder in found.items():
                if identifier not in self._videos:
                    self._videos[identifier] = video = Video(identifier, folder, _readable_job(folder, identifier))
                    if video.job is not None:
                        self._next = max(self._next, video.job.number + 1)

    def videos(self) -> list[Video]:
        """All videos, the newest last."""
        self.scan()
        with self._changed:
            return sorted(self._videos.values(), key=lambda video: (created_at(video), video.id))

    def get(self, identifier: str) -> Video:
        """The video of an identifier. Raises ``ApiError``."""
        with self._changed:
            if identifier not in self._videos:
                self.scan()
            video = self._videos.get(identifier)
        if video is None:
            raise ApiError(404, f"no video `{identifier[:80]}`", code="video_not_found", param="video_id")
        video.view.refresh()
        if self.read_only:  # another process writes it
            video.job = _readable_job(video.folder, identifier)
        return video

    def require_writable(self) -> None:
        """Raise ``ApiError`` if this server only shows videos."""
        if self.read_only:
            raise ApiError(
                503, "this server shows videos, and generates none", code="view_only",
                hint="start one that generates; if another server uses this folder of runs, send the request there",
            )  # fmt: skip

    def in_group(self, group: str) -> list[Video]:
        """The videos of a group, by number."""
        with self._changed:
            found = [video for video in self._videos.values() if video.job is not None and video.job.group == group]
        return sorted(found, key=lambda video: video.job.number if video.job else 0)

    # --- accepting ---------------------------------------------------------------------------------

    def add(self, jobs: Sequence[Job]) -> list[Video]:
        """Accept jobs, in this order; their folders may exist already, with the files that they use."""
        with self._changed:
            self.require_writable()
            self.require_room(len(jobs))
            added = []
            for job in jobs:
                folder = self.runs / job.id
                create_folder(folder)
                numbered = job.model_copy(update={"number": self._next})
                write_job(folder, numbered)
                self._next += 1
                self._videos[job.id] = Video(job.id, folder, numbered)
                added.append(self._videos[job.id])
            self._changed.notify_all()
            return added

    def require_room(self, count: int) -> None:
        """Raise ``ApiError`` if the queue cannot take so many more."""
        if len(self.waiting()) + count > self.limits.queue:
            raise ApiError(
                429, f"the queue is full: {self.limits.queue} videos wait", code="queue_full",
                hint="wait until some are finished, or cancel one",
            )  # fmt: skip

    def waiting(self) -> list[Video]:
        """Videos that wait to be generated, the next one first."""
        with self._changed:
            found = [
                video for video in self._videos.values() if video.job and video.job.is_waiting and not video.running
            ]
            return sorted(found, key=lambda video: video.job.number if video.job else 0)

    def position(self, video: Video) -> int | None:
        """How many videos are generated before one that waits; None if it does not wait."""
        waiting = [each.id for each in self.waiting()]
        return waiting.index(video.id) if video.id in waiting else None

    # --- generating --------------------------------------------------------------------------------

    def take(self, otherwise: Callable[[], Question | None] = lambda: None) -> list[Video] | Question | None:
        """Wait for the next video, and mark it as running; None when the server closes.

        Those that follow in the queue and belong to the same group are taken with it, unless others who wait here can
        generate them at the same time. While there is no video, what ``otherwise`` gives is returned, if anything.
        """
        with self._changed:
            self._idle += 1
            try:
                while not self.closing:
                    if waiting := self.waiting():
                        return self._claimed(waiting)
                    if (other := otherwise()) is not None:
                        return other
                    self._changed.wait()
                return None
            finally:
                self._idle -= 1

    def _claimed(self, waiting: Sequence[Video]) -> list[Video]:
        group = waiting[0].job.group if waiting[0].job else None
        related = [*takewhile(lambda video: video.job is not None and video.job.group == group, waiting)]
        taken = related[: -(-len(related) // self._idle)] if group is not None else waiting[:1]
        for video in taken:
            video.running = True
        return [*taken]

    def wake(self) -> None:
        """Have those who wait for a video look again, also at what they may do otherwise."""
        with self._changed:
            self._changed.notify_all()

    def finish(self, video: Video, *, stopped: bool = False, error: JobError | None = None) -> None:
        """A worker has let go of a video: it is complete, failed, or was stopped."""
        with self._changed:
            video.running = False
            if not stopped and video.job is not None and video.folder.is_dir():
                outcome = "completed" if error is None else "failed"
                self._update(video, outcome=outcome, error=error, completed_at=time.time())
            self._changed.notify_all()

    def close(self) -> None:
        """Wake up all who wait for videos, so that they end."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def wait_until(self, happened: Callable[[], bool], *, seconds: float) -> bool:
        """Wait for something that a change of the queue brings about."""
        with self._changed:
            return self._changed.wait_for(happened, timeout=seconds)

    def _update(self, video: Video, **changes: Any) -> None:
        assert video.job is not None
        self.require_writable()
        job = Job.model_validate({**dict(video.job), **changes})
        write_job(video.folder, job)
        video.job = job
        self._changed.notify_all()

    # --- steering ----------------------------------------------------------------------------------

    def cancel(self, video: Video) -> None:
        """Stop a video for good; what is there of it stays."""
        with self._changed:
            self._require_job(video)
            assert video.job is not None
            if video.job.outcome is None:
                self._update(video, wanted="cancel", completed_at=time.time())

    def pause(self, video: Video) -> None:
        """Stop a video after its block; it keeps its place."""
        with self._changed:
            self._require_job(video)
            assert video.job is not None
            if video.job.outcome is not None or video.job.wanted == "cancel":
                raise ApiError(409, "the video is not being generated", code="not_running")
            self._update(video, wanted="pause")

    def resume(self, video: Video) -> None:
        """Continue a video that was paused, cancelled or failed, or that another process left unfinished."""
        with self._changed:
            self._adopt(video)
            job = video.job
            assert job is not None
            if job.outcome == "completed":
                raise ApiError(409, "the video is complete", code="completed", hint="extend it instead")
            if job.wanted == "run" and job.outcome is None:
                return
            number = job.number
            if job.wanted == "cancel" or job.outcome is not None:
                self.require_room(1)
                number, self._next = self._next, self._next + 1
            self._update(video, wanted="run", outcome=None, error=None, completed_at=None, number=number)

    def switch(self, video: Video, prompt: str, *, cut: bool) -> Switch:
        """Change the prompt of a video that is being generated, from its next block on."""
        with self._changed:
            job, record = video.job, video.view.record
            if job is None or job.outcome is not None or job.wanted == "cancel" or record is None:
                raise ApiError(
                    409, "the video is not being generated", code="not_running",
                    hint="extend it with another prompt instead",
                )  # fmt: skip
            if len(job.switches) >= self.limits.switches:
                raise ApiError(
                    409, f"the prompt was changed {len(job.switches)} times already", code="too_many_switches"
                )
            before = max([live_number(record.timeline), *(each.number for each in job.switches)])
            switch = Switch(number=before + 1, prompt=prompt, cut=cut)
            self._update(video, switches=(*job.switches, switch))
            return switch

    def extend(self, video: Video, *, seconds: float, prompt: str | None, cut: bool) -> None:
        """Add to a video that is finished, cancelled or failed; what is missing of it is dropped."""
        with self._changed:
            video.view.refresh()
            self._adopt(video)
            job, record = video.job, video.view.record
            assert job is not None
            if job.is_waiting or job.wanted == "pause" or video.running:
                raise ApiError(
                    409,
                    "the video is still being generated",
                    code="not_finished",
                    hint="wait for its end, or cancel it",
                )
            if record is None or not video.view.blocks:
                raise ApiError(409, "the video has no frames yet", code="no_frames", hint="create it again")
            longer = extended(record, len(video.view.blocks), seconds=seconds, prompt=prompt, cut=cut)
            if longer.timeline.seconds > self.limits.seconds:
                raise ApiError(
                    400, f"the video would last {longer.timeline.seconds:g} s, more than {self.limits.seconds:g} s",
                    code="invalid_value", param="seconds",
                )  # fmt: skip
            self.require_room(1)
            folder = RunFolder(video.folder)
            try:
                with folder.lock():
                    changes = {"wanted": "run", "outcome": None, "error": None, "completed_at": None, "switches": ()}
                    self._update(video, number=self._next, **changes)
                    self._next += 1
                    folder.write_record(longer)
            except RunLockedError as error:
                raise ApiError(409, error.problem, code="locked", hint=error.hint) from None
            video.view.refresh()

    def pick(self, group: str, identifier: str) -> list[Video]:
        """Keep one video of a group as the chosen one."""
        with self._changed:
            videos = self.in_group(group)
            if not videos:
                raise ApiError(404, f"no group `{group[:80]}`", code="group_not_found", param="group")
            if identifier not in [video.id for video in videos]:
                raise ApiError(404, f"no video `{identifier[:80]}` in this group", code="video_not_found", param="id")
            for video in sorted(videos, key=lambda video: video.id != identifier):  # a kill leaves one that is picked
                self._update(video, picked=video.id == identifier)
            return videos

    def require_removable(self, video: Video) -> None:
        """Raise ``ApiError`` if a video is not this server's, or another one that is not finished yet uses it."""
        self.require_writable()
        if video.job is None or not OURS.fullmatch(video.folder.name):
            raise ApiError(
                403, "the video was not made by this server, so it is not deleted", code="not_ours",
                hint=f"remove its folder, `{video.folder.name}`, yourself",
            )  # fmt: skip
        with self._changed:
            for other in self._videos.values():
                if other.job is None or other.job.outcome is not None or other.job.scene is None:
                    continue
                if other is not video and any(path.is_relative_to(video.folder) for path in _files_of(other.job.scene)):
                    raise ApiError(409, f"`{other.id}` still uses this video", code="in_use")

    def remove(self, video: Video) -> None:
        """Remove a video that no worker is writing, with all of its files."""
        self.require_removable(video)
        with self._changed:
            hidden = hide(video.folder)
            del self._videos[video.id]
            self._changed.notify_all()
        shutil.rmtree(hidden, ignore_errors=True)

    def _require_job(self, video: Video) -> None:
        self.require_writable()
        if video.job is None:
            raise ApiError(409, "the video is not generated by this server", code="not_ours")

    def _adopt(self, video: Video) -> None:
        """Give a run that another process made a job, so that it can be continued here."""
        self.require_writable()
        if video.job is not None:
            return
        record = video.view.record
        if record is None:
            raise ApiError(409, video.view.damage or "the run cannot be read", code="damaged")
        if (owner := video.view.owner) is not None:
            raise ApiError(409, f"{owner} is writing this run", code="locked", hint="wait until it has finished")
        complete = record.is_complete
        job = Job(
            id=video.id,
            number=self._next,
            created_at=created_at(video),
            completed_at=video.view.changed_at if complete else None,
            wanted="run" if complete else "cancel",
            outcome="completed" if complete else None,
            config=record.config,
            prompt=record.prompt,
            seconds=record.seconds,
            seed=record.seed,
        )
        write_job(video.folder, job)
        self._next += 1
        video.job = job


def _files_of(scene: Scene) -> list[Path]:
    """The files and runs that a scene reads."""
    paths = [reference.path for reference in scene.references.values()]
    paths += [path for index in range(len(scene.shots)) for path in scene.opening(index) if path is not None]
    return paths


def created_at(video: Video) -> float:
    """When a video was asked for, in seconds since the epoch; without a job, when its record was last written."""
    if video.job is not None:
        return video.job.created_at
    try:
        return max(0.0, (video.folder / "run.json").stat().st_mtime)
    except OSError:
        return 0.0


def _readable_job(folder: Path, identifier: str) -> Job | None:
    """The job of a run folder; none if it cannot be read, or was copied here from another folder."""
    try:
        job = read_job(folder)
    except LlragError:
        return None
    return job if job is not None and job.id == identifier else None
