"""Videos of a group in one worker: in turns of a block if they fit in memory, each with the bytes it has alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from llrag_cli import Pipeline, RunFolder, make_video, planning
from llrag_cli.engine.session import Session
from llrag_cli.presets import load_config
from llrag_cli.runs import maker
from llrag_cli.serve import generation
from llrag_cli.serve.generation import Control, Generator
from llrag_cli.serve.jobs import Finished, Job, write_job
from llrag_cli.serve.queue import Queue
from llrag_cli.serve.settings import Computing, Limits
from serve.serving import MODEL, PROMPT
from serve.test_queue import job

FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose blocks are begun, one after the other."""
    names: list[str] = []

    class Noted(Control):
        def __call__(self, session: Session) -> None:
            names.append(self._folder.name)
            super().__call__(session)

    monkeypatch.setattr(generation, "Control", Noted)
    return names


def jobs(runs: Path, *, seconds: Sequence[float] = (5, 5)) -> list[Path]:
    """Two jobs, `a` without memory and `b` with it."""
    folders = []
    for name, memory, length in zip("ab", ("none", None), seconds, strict=True):
        folder = runs / name
        folder.mkdir(parents=True)
        write_job(folder, job(config=load_config(MODEL, memory=memory), seconds=length))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same videos, made by a command."""
    runs = tmp_path_factory.mktemp("alone")
    for name, memory in (("a", "none"), ("b", None)):
        pipeline = Pipeline.load(load_config(MODEL, memory=memory), device="cpu")
        make_video(pipeline, PROMPT, RunFolder(runs / name), seconds=5, seed=1)
    return runs


def require_same_bytes(runs: Path, alone: Path) -> None:
    for folder in ("a", "b"):
        for name in FILES:
            assert (runs / folder / name).read_bytes() == (alone / folder / name).read_bytes(), (folder, name)


def test_a_comparison_grows_in_turns_to_the_bytes_of_each_alone(tmp_path: Path, alone: Path, order: list[str]) -> None:
    folders = jobs(tmp_path)
    ended = [*Generator(Computing(device="cpu")).attempt(folders)]
    assert ended == [(folder, Finished()) for folder in folders]
    assert order == [*"ab" * 5]  # before each of four blocks, and at the end
    require_same_bytes(tmp_path, alone)


def test_the_turns_of_others_are_no_work_on_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = 0.0
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + away)
    monkeypatch.setattr(maker, "time", clock)
    folder = RunFolder(tmp_path / "run")
    for _ in maker.make_blocks(Pipeline.load(MODEL, device="cpu"), PROMPT, folder, seconds=2):
        away += 1e6
    assert away == 2e6 and folder.read_record().seconds_of_work < 1e6


def test_what_does_not_fit_together_is_generated_one_after_the_other(
    tmp_path: Path, alone: Path, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "COMFORTABLE", 0.0)
    assert [finished for _, finished in Generator(Computing(device="cpu")).attempt(jobs(tmp_path))] == [Finished()] * 2
    assert order == [*"aaaaabbbbb"]
    require_same_bytes(tmp_path, alone)


def test_one_that_is_stopped_or_damaged_leaves_the_other(tmp_path: Path, alone: Path) -> None:
    first, second = jobs(tmp_path)
    generator = Generator(Computing(device="cpu"))
    paused = job(config=load_config(MODEL, memory="none"), seconds=5)
    blocks = 0

    def pause() -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 4:
            write_job(first, paused.model_copy(update={"wanted": "pause"}))

    generator.on_block = pause
    third = tmp_path / "c"
    third.mkdir()
    ended = dict(generator.attempt([first, third, second]))
    assert (ended[first].stopped, ended[second]) == (True, Finished())
    assert "has no job.json" in (ended[third].problem or "")
    assert 1 <= RunFolder(first).blocks_committed() < 4
    write_job(first, paused)
    assert dict(generator.attempt([first])) == {first: Finished()}
    require_same_bytes(tmp_path, alone)


def grouped(count: int, group: str | None) -> list[Job]:
    return [job(group=group, kind="takes" if group else None) for _ in range(count)]


def test_a_group_is_taken_as_one_and_shared_among_those_who_wait(tmp_path: Path) -> None:
    queue = Queue(tmp_path, Limits())
    names = [video.id for video in queue.add([*grouped(1, None), *grouped(3, "group_a"), *grouped(1, "group_b")])]

    def take() -> list[str]:
        taken = queue.take()
        assert isinstance(taken, list)
        assert all(video.running for video in taken)
        return [video.id for video in taken]

    assert take() == names[:1]
    queue._idle = 1  # as if another worker waited too
    assert take() == names[1:3]
    queue._idle = 0
    assert take() == names[3:4]
    assert take() == names[4:]
