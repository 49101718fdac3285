"""A power cut, or a kill, at any moment of takes, a storyboard and a study, which write to several folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from conftest import call_llrag
from disk import CUTS, Disk, Event, left
from llrag_cli.cli.studies import write_results
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.study import StudyFolder, StudyRow
from llrag_cli.evaluation.study_plan import Key

State = dict[str, dict[str, bytes]]  # files of each folder


class Disks:
    """Several folders that lose power together."""

    def __init__(self, root: Path, *folders: str) -> None:
        self.moments: list[tuple[int, ...]] = []  # how many events of each folder there were
        self.disks = {name: Disk(root / name) for name in folders}
        for disk in self.disks.values():
            disk.events = _Noted(disk.events, self._note)

    def _note(self) -> None:
        self.moments.append(tuple(len(disk.events) for disk in self.disks.values()))

    def recording(self) -> ExitStack:
        stack = ExitStack()
        for disk in self.disks.values():
            stack.enter_context(disk.recording())
        return stack

    def states(self) -> Iterator[State]:
        """Everything that a power cut may leave, each state once, in the order of time."""
        known = set()
        for counts in self.moments:
            for cut in CUTS:
                lengths = zip(self.disks.items(), counts, strict=True)
                state = {name: left(disk.events[:count], *cut) for (name, disk), count in lengths}
                key = tuple((name, *sorted(files.items())) for name, files in state.items())
                if key not in known:
                    known.add(key)
                    yield state


class _Noted(list[Event]):
    def __init__(self, events: Sequence[Event], note: Any) -> None:
        super().__init__(events)
        self._note = note

    def append(self, event: Event) -> None:
        super().append(event)
        self._note()

    def __iadd__(self, events: Any) -> Self:
        super().__iadd__(events)
        self._note()
        return self


def restored(state: State, root: Path) -> None:
    for name in state:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
    for name, files in state.items():
        for file, content in files.items():
            (root / name / file).write_bytes(content)


def sampled(states: Sequence[State], count: int) -> Sequence[State]:
    step = max(1, len(states) // count)
    return states[step // 2 :: step]


SCENE = """shots:
- {name: one, prompt: a red circle, seconds: 1}
- {name: two, prompt: a green square, seconds: 1, cut: true}
"""
FEW = ("--set", "sampler.steps=[1000]", "--set", "memory.window=5", "--set", "memory.retrieved=1")
KEPT = (".mp4", ".safetensors", ".jsonl", ".png")  # files without times in them


def kept(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.suffix in KEPT)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("command", "folders"),
    [
        (("generate", "--scene", "s.yaml", "--takes", "2"), ("out", "out/take-1", "out/take-2")),
        (("storyboard", "s.yaml"), ("out", "out/run")),
    ],
    ids=["takes", "storyboard"],
)
def test_the_same_command_gives_the_same_files(
    tmp_path: Path, command: tuple[str, ...], folders: Sequence[str]
) -> None:
    (tmp_path / "s.yaml").write_text(SCENE)
    call = (*command, *FEW, "--out", str(tmp_path / "out"))
    disks = Disks(tmp_path, *folders)
    with disks.recording():
        done = call_llrag(tmp_path, *call)
    assert done.returncode == 0, done.stderr
    whole = kept(tmp_path / "out")
    found = [*disks.states()]
    assert len(found) > 50
    for state in found:
        for name, content in state["out"].items():  # the sheet and its page are there as a whole, or not at all
            assert "partial" in name or content == (tmp_path / "out" / name).read_bytes()
    for state in sampled(found, 2):
        restored(state, tmp_path)
        again = call_llrag(tmp_path, *call)
        assert again.returncode == 0, again.stderr
        assert kept(tmp_path / "out") == whole
        assert not list((tmp_path / "out").rglob("*partial*"))


@dataclass(frozen=True)
class Row(StudyRow):
    value: float

    @classmethod
    def parse(cls, line: str) -> Self:
        return cls(**json.loads(line))


class Study(StudyFolder[Row]):
    """Two scenes with two conditions, whose rows and pictures are known without a model."""

    def __init__(self, root: Path) -> None:
        keys = [(scene, 0, shot) for scene in (1, 2) for shot in ("A", "B")]
        super().__init__(root, Row, settings={"scenes": 2}, keys=keys)

    def make(self, pipeline: Pipeline, keys: Sequence[Key]) -> Iterator[tuple[Row, Image.Image]]:
        for scene, seed, shot in keys:
            yield Row(scene, seed, shot, scene / 3), Image.new("RGB", (8, 8), (40 * scene, ord(shot), 0))


def run(root: Path, reported: list[Key]) -> None:
    """As the commands of studies do."""
    study = Study(root)
    study.run(None, lambda row: reported.append(row.key))  # type: ignore[arg-type]
    with study.picture(2, 0, "B").open("rb") as file:
        write_results(root, {"rows": [asdict(row) for row in study.rows]}, rows="a,b\n1,2\n", picture=file.read())


def test_a_study_keeps_its_rows_and_their_pictures(tmp_path: Path) -> None:
    """Some 40 states of it are continued: that takes milliseconds without a model."""
    root = tmp_path / "study"
    disks, reported = Disks(tmp_path, "study", "study/pictures"), list[Key]()
    moments: list[int] = []  # at which a row was reported
    with disks.recording():
        study = Study(root)
        study.run(None, lambda row: moments.append(len(disks.moments)))  # type: ignore[arg-type]
        run(root, reported)
    assert reported == [] and len(moments) == 4
    whole = kept(root)
    assert len(whole) == 6  # rows, four pictures and the sheet
    found = [*disks.states()]
    assert len(found) > 50
    for state in found:
        lines = state["study"].get("rows.jsonl", b"").split(b"\n")[:-1]
        rows = [Row.parse(line.decode()) for line in lines if line.strip(b"\0")]
        for row in rows:
            name = f"pictures/{row.scene:02d}-seed0-{row.shot}.png"
            assert state["study/pictures"][name.removeprefix("pictures/")] == whole[name]
    for state in sampled(found, 40):
        restored(state, tmp_path)
        run(root, [])
        assert kept(root) == whole
    for moment, count in zip(moments, range(1, 5), strict=True):
        counts = disks.moments[moment - 1]
        for cut in CUTS:
            files = left(disks.disks["study"].events[: counts[0]], *cut)
            assert files["rows.jsonl"].count(b"\n") >= count
