"""What only a worker can tell before a video is generated: how fast a model is here, and whether it fits in memory."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llrag_cli.config import RunConfig

FRESH = 10.0  # seconds that an answer about memory is good for: what is free changes
MOST_WAITING = 8  # questions
MOST_KEPT = 200  # answers


@dataclass(frozen=True)
class MemoryQuestion:
    """Does a video fit, and what will it hold? ``count`` videos are generated in turns, if they fit together."""

    config: RunConfig
    seconds: float
    references: int  # latent frames
    pinned: int  # of them
    scratch: Path  # folder of files that the archive may be in
    count: int = 1


@dataclass(frozen=True)
class SpeedQuestion:
    """How many frames of video are generated in a second? ``prompt`` is one that the model understands."""

    config: RunConfig
    prompt: str


Question = MemoryQuestion | SpeedQuestion


@dataclass(frozen=True)
class Answer:
    """What a worker found; what stays None cannot be told."""

    bytes: int | None = None  # on the device and on the host
    problem: str | None = None  # why it does not fit
    hint: str = ""
    frames_per_second: float | None = None


@dataclass(frozen=True)
class Answered:
    """A message of a worker; no answer: it was interrupted."""

    question: Question
    answer: Answer | None


class Outlook:
    """Questions that wait for a worker, and what was answered. Methods may be called from any thread."""

    def __init__(self, on_question: Callable[[], None]) -> None:
        self._on_question = on_question
        self._waiting: OrderedDict[Question, None] = OrderedDict()
        self._asked: set[Question] = set()  # workers are at them
        self._answers: OrderedDict[Question, tuple[float, Answer]] = OrderedDict()
        self._lock = threading.Lock()
        self.is_answered = False  # whether there are workers that answer

    def ask(self, question: Question) -> Answer | None:
        """The answer, if it is known; otherwise, or if it is not fresh, a worker is asked."""
        with self._lock:
            asked, answer = self._answers.get(question, (0.0, None))
            stale = isinstance(question, MemoryQuestion) and time.monotonic() - asked > FRESH
            if not self.is_answered or question in self._asked or (answer is not None and not stale):
                return answer
            self._waiting.setdefault(question)
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
        self._on_question()
        return answer

    def next(self, *, quick: bool = False) -> Question | None:
        """Take a question that waits: the newest of those that are answered at once, otherwise of the others.

        Those are left out if it must be ``quick``.
        """
        with self._lock:
            kinds = (MemoryQuestion,) if quick else (MemoryQuestion, SpeedQuestion)
            for question in (each for kind in kinds for each in reversed(self._waiting) if isinstance(each, kind)):
                del self._waiting[question]
                self._asked.add(question)
                return question
        return None

    def is_asked(self, question: Question) -> bool:
        """Whether a worker is at a question."""
        with self._lock:
            return question in self._asked

    def reopen(self) -> None:
        """A worker has died: what it was asked may be asked again."""
        with self._lock:
            self._asked.clear()

    def keep(self, answered: Answered) -> None:
        """Take in what a worker has answered; a question that was left open may be asked again."""
        with self._lock:
            self._asked.discard(answered.question)
            if answered.answer is None:
                return
            self._answers[answered.question] = time.monotonic(), answered.answer
            self._answers.move_to_end(answered.question)
            while len(self._answers) > MOST_KEPT:
                self._answers.popitem(last=False)
