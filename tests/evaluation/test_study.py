"""Studies: rows in their order, and several processes that share them; no model is needed for that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import pytest
from PIL import Image

from llrag_cli.batch import sharing
from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.evaluation.study import StudyFolder, StudyRow
from llrag_cli.evaluation.study_plan import Key

KEYS = [(scene, 0, shot) for scene in (1, 2, 3, 4) for shot in ("A", "B")]
PIPELINE: Any = None


@dataclass(frozen=True)
class Row(StudyRow):
    @classmethod
    def parse(cls, line: str) -> Self:
        return cls(**json.loads(line))


class Study(StudyFolder[Row]):
    """Four scenes with two conditions, two scenes at once; ``made`` lists what this one made."""

    scenes_at_once = 2

    def __init__(self, root: Path, before: Callable[[Key], object] = lambda key: None) -> None:
        super().__init__(root, Row, settings={"scenes": 4}, keys=KEYS)
        self.before, self.made = before, list[Key]()

    def make(self, pipeline: object, keys: Sequence[Key]) -> Iterator[tuple[Row, Image.Image]]:
        for key in keys:
            self.before(key)
            self.made.append(key)
            yield Row(*key), Image.new("RGB", (8, 8))


def test_two_processes_share_the_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "POLL", 0.01)
    begun, goes_on = Event(), Event()

    def slow(key: Key) -> None:
        begun.set()
        assert goes_on.wait(60)

    first, second = Study(tmp_path, slow), Study(tmp_path)
    told: dict[str, list[Row]] = {"first": [], "second": []}
    waits: list[tuple[str, int]] = []
    thread = Thread(target=first.run, args=(PIPELINE, told["first"].append))
    thread.start()
    try:
        assert begun.wait(60)

        def on_wait(error: RunLockedError, count: int) -> None:
            assert second.made == KEYS[4:]  # the scenes that the first one is not making
            waits.append((str(error), count))
            goes_on.set()

        rows = second.run(PIPELINE, told["second"].append, on_wait)
    finally:
        goes_on.set()
        thread.join()
    assert waits == [(f"another process is writing `{tmp_path}`", 1)]
    assert first.made == KEYS[:4] and second.made == KEYS[4:]
    assert [row.key for row in rows] == [row.key for row in first.rows] == KEYS
    assert len((tmp_path / "rows.jsonl").read_bytes().splitlines()) == len(KEYS)
    assert {row.key for row in told["second"]} == {row.key for row in told["first"]} == {*KEYS}
    assert not list(tmp_path.rglob("*.lock"))


def test_rows_come_in_the_order_of_the_plan_whoever_made_them(tmp_path: Path) -> None:
    Study(tmp_path).run(PIPELINE)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(reversed(lines)))
    assert [row.key for row in Study(tmp_path).rows] == KEYS


def test_a_study_that_stopped_is_continued_where_it_was(tmp_path: Path) -> None:
    def failing(key: Key) -> None:
        if key == KEYS[5]:
            raise LlragError("something failed")

    with pytest.raises(LlragError, match="something failed"):
        Study(tmp_path, failing).run(PIPELINE)
    with (tmp_path / "rows.jsonl").open("ab") as file:
        file.write(b'{"scene": 3')  # what a crash leaves
    again = Study(tmp_path)
    told: list[Row] = []
    assert [row.key for row in again.run(PIPELINE, told.append)] == KEYS
    assert again.made == [row.key for row in told] == KEYS[5:]
    assert [json.loads(line)["scene"] for line in (tmp_path / "rows.jsonl").open()] == [key[0] for key in KEYS]
