"""What is said before a video is generated: time, memory and disk, and how the answers of a worker come into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llrag_cli.presets import load_config
from llrag_cli.serve import outlook as module
from llrag_cli.serve.answers import Answers
from llrag_cli.serve.generation import Generator
from llrag_cli.serve.outlook import MOST_WAITING, Answer, Answered, MemoryQuestion, Outlook, SpeedQuestion
from llrag_cli.serve.settings import Computing
from serve.serving import MODEL, PROMPT, Unserved


@pytest.fixture
def server(tmp_path: Path) -> Unserved:
    return Unserved(tmp_path / "runs")


def memory_question(seconds: float = 4.0, *, count: int = 1) -> MemoryQuestion:
    return MemoryQuestion(load_config(MODEL), seconds, references=0, pinned=0, scratch=Path(), count=count)


def speed_question(model: str = MODEL) -> SpeedQuestion:
    return SpeedQuestion(load_config(model), PROMPT)


def estimate(server: Unserved, **fields: Any) -> dict[str, Any]:
    content: dict[str, Any] = server.post("/v1/llrag/estimate", {"prompt": PROMPT, "seconds": 4, **fields}).json()
    return content


def test_without_a_worker_there_is_a_rough_estimate(server: Unserved) -> None:
    found = estimate(server)
    assert found["memory_bytes"] > 5_000_000 and found["disk_bytes"] > 100_000
    assert (found["generation_seconds"], found["measuring"], found["fits"]) == (None, False, True)


def test_what_a_worker_answers_is_in_the_next_estimate(server: Unserved) -> None:
    outlook = server.app.state.service.outlook
    outlook.is_answered = True
    found = estimate(server, compare=True, seconds=20)
    assert (found["memory_bytes"], found["generation_seconds"], found["measuring"]) == (None, None, True)
    memory, speed = outlook.next(), outlook.next()
    assert isinstance(memory, MemoryQuestion) and (memory.count, memory.seconds) == (2, 20.625)
    assert isinstance(speed, SpeedQuestion) and speed.prompt == PROMPT and outlook.next() is None
    assert estimate(server, compare=True, seconds=20)["measuring"] and outlook.next() is None  # a worker is at it
    outlook.keep(Answered(memory, Answer(bytes=5_000)))
    outlook.keep(Answered(speed, Answer(frames_per_second=10.0)))
    found = estimate(server, compare=True, seconds=20)
    assert (found["memory_bytes"], found["generation_seconds"], found["measuring"]) == (5_000, 33.0, False)
    assert estimate(server, seconds=9, memory="none")["generation_seconds"] == 8.1  # another memory, the same cost
    outlook.keep(Answered(memory, Answer(problem="too much", hint="less")))
    found = estimate(server, compare=True, seconds=20)
    assert (found["fits"], found["problem"]) == (False, {"message": "too much", "hint": "less"})


def test_a_model_whose_speed_is_not_tried_is_not_measured_for_ever(server: Unserved) -> None:
    outlook = server.app.state.service.outlook
    outlook.is_answered = True
    estimate(server)
    for question in (outlook.next(), outlook.next()):
        outlook.keep(Answered(question, Answer(bytes=1) if isinstance(question, MemoryQuestion) else Answer()))
    found = estimate(server)
    assert (found["generation_seconds"], found["measuring"]) == (None, False)


def test_questions_wait_for_those_who_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[int] = []
    outlook = Outlook(lambda: woken.append(1))
    assert outlook.ask(speed_question()) is None and outlook.next() is None  # nobody would answer
    outlook.is_answered = True
    outlook.ask(speed_question())
    assert woken == [1] and outlook.next(quick=True) is None
    outlook.ask(memory_question())
    assert outlook.next(quick=True) == memory_question()
    assert outlook.next() == speed_question() and outlook.is_asked(speed_question())
    outlook.keep(Answered(speed_question(), None))  # interrupted
    outlook.ask(speed_question())
    assert outlook.next() == speed_question()
    outlook.reopen()  # the worker died
    outlook.ask(speed_question())
    assert outlook.next() == speed_question()
    for seconds in range(1, 2 * MOST_WAITING):
        outlook.ask(memory_question(seconds))
    waiting = []
    while (question := outlook.next()) is not None:
        waiting.append(question)
    assert waiting == [memory_question(seconds) for seconds in range(2 * MOST_WAITING - 1, MOST_WAITING - 1, -1)]
    outlook.keep(Answered(memory_question(), Answer(bytes=1)))
    monkeypatch.setattr(module, "FRESH", -1.0)
    assert outlook.ask(memory_question()) == Answer(bytes=1) and outlook.next() == memory_question()  # asked again


def test_a_worker_plans_memory_and_times_blocks() -> None:
    generator = Generator(Computing(device="cpu"))
    answers = Answers(generator)

    def bytes_of(question: MemoryQuestion) -> int:
        answer = answers.answer(question, interrupted=lambda: False)
        assert answer is not None and answer.problem is None and answer.bytes
        return answer.bytes

    one, longer = bytes_of(memory_question(4.0)), bytes_of(memory_question(40.0))
    both = bytes_of(memory_question(4.0, count=2))
    assert one < longer and one < both < 2 * one  # both have the same weights
    hours = answers.answer(memory_question(1e6), interrupted=lambda: False)
    assert hours is not None and "this run needs" in (hours.problem or "") and hours.hint
    assert not generator.has(load_config(MODEL), "auto")
    speed = answers.answer(speed_question(), interrupted=lambda: False)
    assert speed is not None and speed.frames_per_second is not None and speed.frames_per_second > 0
    assert generator.has(load_config(MODEL), "auto")
    assert answers.answer(speed_question(), interrupted=lambda: True) is None
    assert answers.answer(speed_question("self-forcing"), interrupted=lambda: False) == Answer()  # minutes on a CPU
