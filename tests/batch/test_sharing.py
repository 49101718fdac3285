"""Several commands on one folder share its videos, and their folders keep their names."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Llrag
from llrag_cli.batch import sharing
from llrag_cli.batch.executors import Outcome, attempt
from llrag_cli.cli import gather as gathering
from llrag_cli.cli.gather import gather
from llrag_cli.cli.generate import _continuing_all, _folders_of_prompts
from llrag_cli.errors import RunLockedError, UsageError
from llrag_cli.evaluation import run as running
from llrag_cli.evaluation.grid import Grid, strategy_variant
from llrag_cli.evaluation.run import Bench
from llrag_cli.runs.folder import RunFolder

FEW = ("--seconds", "2", "--set", "sampler.steps=[1000]")


class Others:
    """Runs that another process holds for so many attempts."""

    def __init__(self, held: dict[str, int]) -> None:
        self.held = held
        self.attempts: list[str] = []

    def work(self, name: str) -> str:
        self.attempts.append(name)
        self.held[name] = self.held.get(name, 0) - 1
        if self.held[name] >= 0:
            raise RunLockedError(Path(name), "process 7")
        return name.upper()


def test_what_another_process_holds_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    waits: list[tuple[str, int]] = []
    monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=naps.append))
    others = Others({"a": 4, "c": 1})
    done = sharing.shared("abcd", others.work, on_wait=lambda error, count: waits.append((error.owner, count)))
    assert list(done) == [("b", "B"), ("d", "D"), ("c", "C"), ("a", "A")]
    assert others.attempts == [*"abcd", *"ac", "a", "a", "a"]
    assert len(naps) == 2 and waits == [("process 7", 1)]  # it waits only when nothing else is left
    with pytest.raises(UsageError, match="other settings"):
        list(sharing.shared(["a"], lambda _: (_ for _ in ()).throw(UsageError("other settings"))))


def test_jobs_of_an_engine_share_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Here:
        def run(
            self, work: Callable[[Any], Any], jobs: Sequence[Any], *, on_tick: Callable[[], None]
        ) -> Generator[Outcome[Any], None, None]:
            yield from (attempt(work, number, job) for number, job in enumerate(jobs))

    monkeypatch.setattr(gathering, "time", SimpleNamespace(sleep=lambda seconds: None))
    others = Others({"a": 3, "b": 1})
    outcomes = gather(Here(), others.work, "abc", title="making", total=3, completed=len)
    assert [(outcome.number, outcome.result) for outcome in outcomes] == [(0, "A"), (1, "B"), (2, "C")]
    assert capsys.readouterr().err.count("process 7 makes 1 video that is left; waiting") == 1


def test_a_second_command_takes_what_the_first_does_not_hold(
    llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na green square\n")
    first = RunFolder(tmp_path / "all/001-a-red-circle")
    lock = first.lock()
    lock.__enter__()
    ends = SimpleNamespace(sleep=lambda seconds: lock.__exit__(None, None, None))
    monkeypatch.setattr(sharing, "time", ends)
    done = llrag("generate", "--prompts", "prompts.txt", "--out", "all", *FEW)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all/002-a-green-square/video.mp4\nall/001-a-red-circle/video.mp4\n"
    assert "makes 1 video that is left; waiting" in done.stderr.replace("\n", " ")
    assert all(RunFolder(path).read_record().is_complete for path in (tmp_path / "all").iterdir())


def test_a_second_benchmark_takes_what_the_first_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(_: object, prompt: str, folder: RunFolder, **options: object) -> None:
        with folder.lock():
            assert prompt == "a red circle"

    monkeypatch.setattr(running, "make_video", made)
    monkeypatch.setattr(running, "Pipeline", SimpleNamespace(load=lambda *arguments, **options: None))
    grid = Grid(("tiny",), (strategy_variant("none"), strategy_variant("random")), (4.0,), ((1, "a red circle"),), (0,))
    first = next(iter(grid.cases()))
    lock = RunFolder(first.folder(tmp_path)).lock()
    lock.__enter__()
    waits: list[int] = []

    def ends(seconds: float) -> None:
        lock.__exit__(None, None, None)

    monkeypatch.setattr(sharing, "time", SimpleNamespace(sleep=ends))
    bench = Bench(tmp_path, grid)
    cases = bench.make("cpu", "float32", lambda case, done: None, lambda error, count: waits.append(count))
    assert [case.memory for case in cases] == ["random", "none"] and waits == [1]


def test_folders_keep_their_names_when_the_file_grows(tmp_path: Path) -> None:
    texts = [f"prompt {number}" for number in range(1, 1002)]
    few, many = (_folders_of_prompts(tmp_path, texts[:count]) for count in (2, 1001))
    assert [folder.path for folder in few] == [folder.path for folder in many[:2]]
    assert [many[number].path.name for number in (0, 998, 999)] == [
        "001-prompt-1",
        "999-prompt-999",
        "1000-prompt-1000",
    ]


def test_the_command_that_continues_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["a red circle", "a green square"]

    def said(out: Path | None, *, force: bool = False) -> str | None:
        return _continuing_all(out, texts, _folders_of_prompts(out, texts), force=force)

    assert said(Path("all")) == "the same command"
    assert said(Path("all"), force=True) == "the same command without `--force`"
    assert said(None) == "the same command with `--out runs`"
    Path("runs/001-a-red-circle").mkdir(parents=True)
    assert said(None) is None  # one is in runs/001-a-red-circle-2: only it is named
