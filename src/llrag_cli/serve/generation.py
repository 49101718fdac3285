"""One job into its run folder, in a worker, with the weights that are loaded there."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline, memory_plan
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.maker import make_video, resume_video
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.jobs import FILE, Finished, Job, live_number, read_job, renewed
from llrag_cli.serve.settings import Computing

PATIENCE = 30.0  # seconds that the process of a server that was killed may still hold a folder
LOOK = 0.2


class Generator:
    """Fills run folders, one after the other."""

    def __init__(self, computing: Computing) -> None:
        self._computing = computing
        self._loaded: Pipeline | None = None
        self._dtype = ""  # it was asked for with
        self.is_busy = False  # with a job
        self.is_stopping = False  # set from outside: the job ends before its next block

    def warm_up(self, model: str) -> None:
        """Load a model if that takes no time worth speaking of."""
        config, computing = load_config(model), self._computing
        if family_of(config).bundled:
            with suppress(LlragError):  # it is an error of the first job
                self._loaded = Pipeline.load(config, device=computing.device, dtype=computing.dtype)
                self._dtype = computing.dtype

    def attempt(self, folder: Path) -> Finished:
        """Generate what is missing of the run of a job."""
        started = time.monotonic()
        self.is_busy = True
        while True:
            try:
                self._generate(folder)
            except RunLockedError as error:
                if time.monotonic() - started > PATIENCE:
                    return Finished(problem=error.problem, hint=error.hint)
                time.sleep(LOOK)
            except LlragError as error:
                return Finished(problem=error.problem, hint=error.hint)
            except Stopped:
                return Finished(stopped=True)
            else:
                return Finished()

    def _generate(self, path: Path) -> None:
        job, folder = read_job(path), RunFolder(path)
        if job is None:
            raise LlragError(f"`{path}` has no {FILE}", hint="it was removed while the job was waiting")
        if folder.record.exists():
            record = folder.read_record()
            if folder.is_finished(record):
                return
            pipeline = self._pipeline(renewed(record.config), record.timeline, dtype=record.dtype, scratch=path)
            resume_video(pipeline, folder, between=Control(path, self))
            return
        pipeline = self._pipeline(job.config, job.planned(), dtype=self._computing.dtype, scratch=path)
        if job.scene is not None:
            make_video(pipeline, job.scene, folder, seed=job.seed, existing="resume", between=Control(path, self))
            return
        make_video(
            pipeline,
            job.prompt or "",
            folder,
            seconds=job.seconds,
            seed=job.seed,
            existing="resume",
            image=job.image,
            between=Control(path, self),
        )

    def _pipeline(self, config: RunConfig, timeline: Timeline, *, dtype: str, scratch: Path) -> Pipeline:
        """The weights of a configuration; those that are loaded, if they are the same."""
        computing = self._computing
        if self._loaded is None or dtype != self._dtype or not _same_weights(self._loaded.config, config):
            self._loaded = None  # two sets of weights are never in memory together
            budget = memory_plan(
                config,
                device=computing.device,
                dtype=dtype,
                seconds=timeline.seconds,
                references=timeline.reference_count,
                pinned=timeline.pinned_frames,
                switches=True,  # it may be directed while it is generated
                prompts=timeline.prompts,
                offload=computing.offload,
                scratch=scratch,
            )
            budget.require()
            how = Execution(offload=computing.offload, attention=computing.attention, compile=computing.compile)
            self._loaded = Pipeline.load(
                config, device=computing.device, dtype=dtype, how=how, prompts=timeline.prompts
            )
            self._dtype = dtype
        self._loaded = self._loaded.with_memory(config)
        return self._loaded


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
