"""Jobs into their run folders, in a worker, with the weights that are loaded there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline, memory_plan
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.family import family_of
from llrag_cli.planning import Budget
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.maker import Blocks, make_blocks, resume_blocks
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.jobs import FILE, Finished, Job, live_number, read_job, renewed
from llrag_cli.serve.settings import Computing

PATIENCE = 30.0  # seconds that the process of a server that was killed may still hold a folder
LOOK = 0.2


@dataclass(frozen=True)
class Task:
    """A job, as it is to be generated now; ``is_begun``: there are blocks of it already."""

    folder: RunFolder
    job: Job
    config: RunConfig
    timeline: Timeline
    dtype: str
    is_begun: bool


class Generator:
    """Fills run folders."""

    def __init__(self, computing: Computing) -> None:
        self.computing = computing
        self._loaded: Pipeline | None = None
        self._dtype = ""  # it was asked for with
        self.is_busy = False  # with jobs
        self.is_stopping = False  # set from outside: jobs end before their next block
        self.on_block: Callable[[], None] = lambda: None  # called before each block

    def warm_up(self, model: str) -> None:
        """Load a model if that takes no time worth speaking of."""
        config, computing = load_config(model), self.computing
        if family_of(config).bundled:
            with suppress(LlragError):  # it is an error of the first job
                self._loaded = Pipeline.load(config, device=computing.device, dtype=computing.dtype)
                self._dtype = computing.dtype

    def attempt(self, folders: Sequence[Path]) -> Iterator[tuple[Path, Finished]]:
        """Generate what is missing of some runs, and yield how each ended.

        They advance in turns of a block if they fit in memory together, and otherwise one after the other.
        """
        self.is_busy = True
        tasks: list[Task] = []
        for folder in folders:
            try:
                tasks.append(self._task(folder))
            except LlragError as error:
                yield folder, Finished(problem=error.problem, hint=error.hint)
        for together in self._that_fit(tasks):
            for task, finished in self._in_turns(together):
                yield task.folder.path, finished

    def pipeline_for(self, config: RunConfig, dtype: str, prompts: Sequence[str]) -> Pipeline:
        """The weights of a configuration; those that are loaded, if they are the same."""
        computing = self.computing
        if not self.has(config, dtype):
            self._loaded = None  # two sets of weights are never in memory together
            how = Execution(
                offload=computing.offload,
                attention=computing.attention,
                compile=computing.compile,
                sharing=computing.sharing,
                fast=computing.fast,
            )
            self._loaded = Pipeline.load(config, device=computing.device, dtype=dtype, how=how, prompts=prompts)
            self._dtype = dtype
        assert self._loaded is not None
        self._loaded = self._loaded.with_memory(config)
        return self._loaded

    def has(self, config: RunConfig, dtype: str) -> bool:
        """Whether the weights of a configuration are loaded."""
        return self._loaded is not None and dtype == self._dtype and _same_weights(self._loaded.config, config)

    def _task(self, path: Path) -> Task:
        job, folder = read_job(path), RunFolder(path)
        if job is None:
            raise LlragError(f"`{path}` has no {FILE}", hint="it was removed while the job was waiting")
        if not folder.record.exists():
            return Task(folder, job, job.config, job.planned(), self.computing.dtype, is_begun=False)
        record = folder.read_record()
        return Task(folder, job, renewed(record.config), record.timeline, record.dtype, is_begun=True)

    def _that_fit(self, tasks: Sequence[Task]) -> Iterator[list[Task]]:
        """The tasks, in their order, in groups that use the same weights and fit in memory together."""
        group: list[Task] = []
        budgets: list[Budget] = []
        for task in tasks:
            budget = self._budget(task) if len(tasks) > 1 else None
            if group and not (
                budget is not None
                and budgets
                and task.dtype == group[0].dtype
                and _same_weights(task.config, group[0].config)
                and budgets[0].beside([*budgets[1:], budget]).comfortable
            ):
                yield group
                group, budgets = [], []
            group.append(task)
            budgets += [] if budget is None else [budget]
        if group:
            yield group

    def _budget(self, task: Task) -> Budget | None:
        """What a video holds besides the weights; None if that cannot be told, which generating it will explain."""
        try:
            return self._ready(task).budget(task.timeline, scratch=task.folder.path)
        except LlragError:
            return None

    def _ready(self, task: Task) -> Pipeline:
        """The weights for a task, which are loaded only if they and the video fit in memory."""
        timeline = task.timeline
        if not self.has(task.config, task.dtype):
            self._loaded = None
            memory_plan(
                task.config,
                device=self.computing.device,
                dtype=task.dtype,
                seconds=timeline.seconds,
                references=timeline.reference_count,
                pinned=timeline.pinned_frames,
                switches=True,  # it may be directed while it is generated
                prompts=timeline.prompts,
                offload=self.computing.offload,
                scratch=task.folder.path,
                sharing=self.computing.sharing,
            ).require()
        return self.pipeline_for(task.config, task.dtype, timeline.prompts)

    def _in_turns(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Finished]]:
        """Generate runs in turns of a block: the one that is furthest behind is next."""
        started = time.monotonic()
        blocks = {task.folder.path: self._blocks(task) for task in tasks}
        left = {task.folder.path: task for task in tasks}
        done = dict.fromkeys(left, 0)
        while left:
            path = min(left, key=lambda each: done[each])
            try:
                done[path] = next(blocks[path]).done
                continue
            except StopIteration:
                finished = Finished()
            except Stopped:
                finished = Finished(stopped=True)
            except RunLockedError as error:
                if time.monotonic() - started <= PATIENCE:
                    time.sleep(LOOK)
                    left[path] = self._task(path)  # what is there of it may have grown
                    blocks[path] = self._blocks(left[path])
                    continue
                finished = Finished(problem=error.problem, hint=error.hint)
            except LlragError as error:
                finished = Finished(problem=error.problem, hint=error.hint)
            yield left.pop(path), finished

    def _blocks(self, task: Task) -> Blocks:
        job, control = task.job, Control(task.folder.path, self)
        if task.is_begun:
            if task.folder.is_finished(record := task.folder.read_record()):
                return [record]
            return (yield from resume_blocks(self._ready(task), task.folder, between=control))
        pipeline = self._ready(task)
        if job.scene is not None:
            scene = make_blocks(pipeline, job.scene, task.folder, seed=job.seed, existing="resume", between=control)
            return (yield from scene)
        return (
            yield from make_blocks(
                pipeline,
                job.prompt or "",
                task.folder,
                seconds=job.seconds,
                seed=job.seed,
                existing="resume",
                image=job.image,
                between=control,
            )
        )


def _same_weights(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations read the same files, but for a retrieval encoder that only one of them needs."""
    encoders = {memory.encoder for memory in (one.memory, other.memory) if isinstance(memory, RetrievalMemory)}
    return one.backbone == other.backbone and one.video.decoder == other.video.decoder and len(encoders) < 2


class Stopped(KeyboardInterrupt):
    """The run was asked to stop: it ends as after Ctrl-C, with its files complete."""


class Control:
    """Called before each block: stops the run or changes its prompt, as ``job.json`` asks."""

    def __init__(self, folder: Path, generator: Generator) -> None:
        self._generator = generator
        self._file = folder / FILE
        self._folder = folder
        self._known = RunFolder(folder).blocks_committed()  # blocks that are replayed, which nothing may change
        self._block = -1
        self._stamp: object = None
        self._job: Job | None = None

    def __call__(self, session: Session) -> None:
        """Look for what is asked for; raises ``Stopped`` for a pause or cancellation."""
        self._block += 1
        if self._block >= session.block_count:
            return
        self._generator.on_block()
        job = self._read()
        if job.wanted != "run" or self._generator.is_stopping:
            raise Stopped
        applied = live_number(session.timeline)
        waiting = [switch for switch in job.switches if switch.number > applied]
        last = max((shot.start for shot in session.timeline.shots if shot.name == f"now-{applied}"), default=0)
        if waiting and self._block >= max(1, self._known, last):
            switch = waiting[-1]
            session.switch(switch.prompt, cut=switch.cut, name=switch.name)

    def _read(self) -> Job:
        try:
            status = self._file.stat()
            stamp = status.st_mtime_ns, status.st_size, status.st_ino
        except OSError:  # the folder is being removed
            raise Stopped from None
        if self._job is None or stamp != self._stamp:
            job = read_job(self._folder)
            if job is None:
                raise Stopped
            self._job, self._stamp = job, stamp
        return self._job
