"""Answers of a worker to what is asked before a video is generated."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from llrag_cli.config import Location
from llrag_cli.engine.devices import find_device
from llrag_cli.engine.pipeline import memory_plan
from llrag_cli.engine.timing import time_blocks
from llrag_cli.errors import LlragError
from llrag_cli.files.resources import free_memory
from llrag_cli.models.family import family_of
from llrag_cli.planning import Budget
from llrag_cli.serve.generation import Generator
from llrag_cli.serve.outlook import Answer, MemoryQuestion, Question, SpeedQuestion

IN_MEMORY: tuple[Location, ...] = ("device", "host")


class Answers:
    """What a worker's machine can do; made before any weights are loaded."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        device = find_device(generator.computing.device)
        self._is_gpu = device.type == "cuda"
        self._room = free_memory(device) if self._is_gpu else None  # what is loaded later makes way for other weights

    def answer(self, question: Question, *, interrupted: Callable[[], bool]) -> Answer | None:
        """The answer; None if it was interrupted."""
        try:
            if isinstance(question, MemoryQuestion):
                return self._memory(question)
            return self._speed(question, interrupted)
        except LlragError as error:
            return Answer(problem=error.problem, hint=error.hint)

    def _memory(self, question: MemoryQuestion) -> Answer:
        """What one video holds, or all of them at the same time if they fit."""
        budget, one = self._plan(question, loaded=False), self._plan(question, loaded=True)
        together = budget.beside([one] * (question.count - 1))
        shown = together if together.comfortable else budget
        budget.require()
        return Answer(bytes=sum(shown.total(location) for location in IN_MEMORY))

    def _plan(self, question: MemoryQuestion, *, loaded: bool) -> Budget:
        computing = self._generator.computing
        budget = memory_plan(
            question.config,
            device=computing.device,
            dtype=computing.dtype,
            seconds=question.seconds,
            references=question.references,
            pinned=question.pinned,
            switches=True,  # as the generator plans it
            offload=computing.offload,
            sharing=computing.sharing,
            scratch=question.scratch,
            loaded=loaded,
        )
        return budget if self._room is None else dataclasses.replace(budget, free={**budget.free, "device": self._room})

    def _speed(self, question: SpeedQuestion, interrupted: Callable[[], bool]) -> Answer | None:
        """Time some blocks; a large model is tried on a GPU alone, where that takes seconds."""
        generator, config = self._generator, question.config
        if not self._is_gpu and not family_of(config).bundled:
            return Answer()
        if not generator.has(config, generator.computing.dtype):
            scratch = Path(tempfile.gettempdir())
            short = MemoryQuestion(config, seconds=1.0, references=0, pinned=0, scratch=scratch)
            self._plan(short, loaded=False).require()
        pipeline = generator.pipeline_for(config, generator.computing.dtype, [question.prompt])
        if interrupted():
            return None
        trial = time_blocks(pipeline, question.prompt, interrupted=interrupted)
        return None if trial is None else Answer(frames_per_second=trial.frames_per_second)
