"""A power cut, or a kill, after any write of a run: committed blocks are there, and the run resumes to the same files.

``LLRAG_EVERY_CUT=1 pytest -n 0 tests/runs/test_power_cut.py`` resumes after every one of them, not after a sample.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Llrag
from disk import CUTS, Disk, left
from llrag_cli import Pipeline, RunFolder, load_config, make_video
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragWarning, NotARunError
from llrag_cli.runs.commits import START
from llrag_cli.runs.journal import Committed, Journal, read_committed
from llrag_cli.runs.record import RunRecord

PROMPT = "a red circle on a blue wall"
SECONDS = 7.0  # five blocks, each a segment of the video
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4", "commits.jsonl")
SAMPLE = 4  # states of each scenario that are resumed


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    few = ("sampler.steps=[1000]", "memory.window=5", "memory.retrieved=1", "memory.guard=0")
    return Pipeline.load(load_config("tiny", settings=few), device="cpu")


@dataclass(frozen=True)
class Scenario:
    """What was recorded while a run was made, and the files that it has in the end."""

    name: str
    disk: Disk
    whole: dict[str, bytes]


def make(pipeline: Pipeline, folder: RunFolder, *, seed: int = 0, replace: bool = False) -> RunRecord:
    existing = "replace" if replace else "resume"
    return make_video(pipeline, PROMPT, folder, seconds=SECONDS, seed=seed, existing=existing)


def files_of(folder: RunFolder) -> dict[str, bytes]:
    return {name: (folder.path / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def scenarios(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scenario]:
    """Records a run that is made in an empty folder, one that is continued, or one in place of another; each once."""

    @cache
    def recorded(name: str) -> Scenario:
        folder = RunFolder(tmp_path_factory.mktemp(name))
        with pytest.MonkeyPatch.context() as patched:
            if name == "continued":
                with patched.context() as stopped, pytest.raises(KeyboardInterrupt):
                    stopped.setattr(Session, "__next__", _stopping(Session.__next__, block=3))
                    make(pipeline, folder)
            elif name == "replaced":
                make(pipeline, folder, seed=1)
            disk = Disk(folder.path)
            commit = Journal.commit

            def marking(journal: Journal, *arguments: Any) -> None:
                commit(journal, *arguments)
                disk.mark(f"committed {journal.blocks}")

            patched.setattr(Journal, "commit", marking)
            with disk.recording():
                make(pipeline, folder, replace=name == "replaced")
        whole = files_of(folder)
        assert b'"retrieved": [1' in whole["memory.jsonl"]
        return Scenario(name, disk, whole)

    return recorded


@pytest.fixture(params=["new", "continued", "replaced"])
def scenario(request: pytest.FixtureRequest, scenarios: Callable[[str], Scenario]) -> Scenario:
    return scenarios(request.param)


@pytest.fixture
def finished(scenarios: Callable[[str], Scenario], tmp_path: Path) -> RunFolder:
    """A run that is complete."""
    return restore(left(scenarios("new").disk.events, "kept", "kept"), tmp_path / "run")


def _stopping(next_block: Callable[[Session], Block], *, block: int) -> Callable[[Session], Block]:
    def stopping(session: Session) -> Block:
        made = next_block(session)
        if made.index == block:
            raise KeyboardInterrupt
        return made

    return stopping


def states(scenario: Scenario) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Everything that a power cut may leave, each state once, with the number of blocks that were committed before."""
    committed = 3 if scenario.name == "continued" else 0
    known = set()
    events, start = scenario.disk.events, scenario.disk.start
    for count, event in enumerate(events[start:], start=start + 1):
        if event.kind == "mark":
            committed = int(event.name.removeprefix("committed "))
        for cut in CUTS:
            files = left(events[:count], *cut)
            key = (committed, *sorted(files.items()))
            if key not in known:
                known.add(key)
                yield committed, files


def restore(files: dict[str, bytes], path: Path) -> RunFolder:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return RunFolder(path)


def test_all_committed_blocks_survive(scenario: Scenario, tmp_path: Path) -> None:
    whole = scenario.whole
    total = 0
    for committed, files in states(scenario):
        folder = restore(files, tmp_path / "run")
        total += 1
        try:
            record = folder.read_record()
        except NotARunError:
            assert committed == 0
            continue
        if scenario.name == "replaced" and record.seed == 1:
            assert committed == 0  # the run that is about to be replaced
            continue
        found = committed_of(folder, record)
        assert found.blocks >= committed
        latents = b"" if found.latents is None else found.latents.numpy().tobytes()
        assert whole["latents.safetensors"][4096:].startswith(latents)
        assert whole["memory.jsonl"].startswith(files.get("memory.jsonl", b"")[: found.memory_bytes])
        assert whole["video.mp4"].startswith(files.get("video.mp4", b"")[: found.video.bytes])
        assert not found.video_has_changed
        if record.is_complete:
            assert folder.is_finished(record)
            assert {name: files[name] for name in FILES} == whole
    assert total > 40


def test_a_run_that_is_not_recorded_yet_is_no_obstacle(scenarios: Callable[[str], Scenario], tmp_path: Path) -> None:
    """The same command can be repeated, or the run resumed: nobody has to remove anything by hand."""
    recorded = 0
    for _, files in states(scenarios("new")):
        folder = restore(files, tmp_path / "run")
        if "run.json" not in files:
            folder.require_free()
            with folder.lock():
                pass
            assert not [path for path in folder.path.iterdir() if path.name.endswith(".partial")]
        recorded += "run.json" in files
    assert recorded


def test_a_run_that_was_reported_complete_stays_complete(scenario: Scenario, tmp_path: Path) -> None:
    for cut in CUTS:
        folder = restore(left(scenario.disk.events, *cut), tmp_path / "run")
        assert folder.is_finished(folder.read_record()), cut
        assert files_of(folder) == scenario.whole, cut


def test_any_state_resumes_to_the_same_files(pipeline: Pipeline, scenario: Scenario, tmp_path: Path) -> None:
    found = [files for _, files in states(scenario)]
    step = 1 if "LLRAG_EVERY_CUT" in os.environ else len(found) // SAMPLE
    for files in found[step // 2 :: step]:
        folder = restore(files, tmp_path / "run")
        replace = scenario.name == "replaced" and (not folder.record.exists() or folder.read_record().seed == 1)
        make(pipeline, folder, replace=replace)  # the command that was interrupted, repeated
        assert files_of(folder) == scenario.whole


def test_each_file_is_synced_before_the_line_that_counts_it(scenario: Scenario) -> None:
    """Write, sync, and then the commit line; a rename only after a sync, and a sync of the folder after it."""
    words = scenario.disk.names()[scenario.disk.start :]
    first_commit = words.index("write commits.jsonl")
    for name in ("latents.safetensors", "memory.jsonl", "commits.jsonl", "video.mp4"):
        if f"create {name}" in words:
            assert "sync ." in words[words.index(f"create {name}") : first_commit]
    unsynced: set[str] = set()
    for before, word in enumerate(words):
        kind, _, name = word.partition(" ")
        if kind == "write":  # what a resumed run cuts off may come back: it is cut off again
            unsynced.add(name)
        elif kind == "sync":
            unsynced.discard(name)
        elif kind == "rename":
            assert name.split()[0] not in unsynced
            assert words[before + 1] == "sync ."
        if word == "write commits.jsonl":
            assert unsynced <= {"commits.jsonl"}
        if kind == "mark":
            assert not unsynced
    assert "mark committed 5" in words


def test_files_that_are_replaced_are_gone_before_the_new_record(scenarios: Callable[[str], Scenario]) -> None:
    words = scenarios("replaced").disk.names()
    last_removed = max(words.index(f"remove {name}") for name in FILES)
    assert words[last_removed + 1] == "sync ."


def test_a_new_run_folder_is_synced_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("llrag_cli.files.durable.sync_folder", synced.append)
    with RunFolder(tmp_path / "videos/run").lock():
        assert synced[:2] == [tmp_path, tmp_path / "videos"]


# --- a video that has changed -------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0.5, 0.999])  # in a whole segment, and behind the last one
def test_a_video_that_changed_is_noticed_and_written_again(
    pipeline: Pipeline, finished: RunFolder, where: float
) -> None:
    whole = files_of(finished)
    change_video(finished, where)
    record = finished.read_record()
    assert finished.video_has_changed(record) and not finished.is_finished(record)
    with pytest.warns(LlragWarning, match=r"video\.mp4` has changed since it was written; it is written again from"):
        assert make(pipeline, finished).resumed_at == (5,)
    assert files_of(finished) == whole


def change_video(folder: RunFolder, where: float) -> None:
    """Flip a bit of the video, at a share of its length."""
    content = bytearray(folder.video.read_bytes())
    content[int(where * len(content))] ^= 1
    folder.video.write_bytes(content)


def test_only_segments_from_the_damaged_one_on_are_encoded_again(finished: RunFolder) -> None:
    record, content = finished.read_record(), finished.video.read_bytes()
    finished.video.write_bytes(content[:-9] + b"X" + content[-8:])
    found = committed_of(finished, record)
    assert (found.video.blocks, found.video_has_changed) == (4, False)  # what follows the mark is cut off anyway
    finished.video.write_bytes(b"X" + content[1:])
    assert (committed_of(finished, record).video, committed_of(finished, record).video_has_changed) == (START, True)
    finished.video.write_bytes(content[: found.video.bytes - 1])
    found = committed_of(finished, record)
    assert (found.video.blocks, found.video_has_changed) == (3, False)  # the fourth segment is cut off


def committed_of(folder: RunFolder, record: RunRecord) -> Committed:
    return read_committed(folder, shape=record.latent_shape, dtype=torch.float32)


def test_commands_say_that_a_video_changed(finished: RunFolder, llrag: Llrag) -> None:
    change_video(finished, 0.999)
    shown = llrag("inspect", "run")
    assert shown.returncode == 0
    said = " ".join(shown.stderr.split())
    assert "warning: `run/video.mp4` has changed since it was written; `llrag generate --resume run` writes it" in said
    refused = llrag("export", "run", "--no-timeline")
    assert refused.returncode == 2
    assert "error: `run/video.mp4` has changed since it was written" in refused.stderr
    assert "hint: `llrag generate --resume run` writes it again from the latents" in refused.stderr
    assert not (finished.path / "export").exists()


def test_runs_without_checksums_of_the_video_are_read(pipeline: Pipeline, finished: RunFolder) -> None:
    record = finished.read_record()
    content = json.loads(finished.record.read_text())
    del content["video_crc32"]
    finished.record.write_text(json.dumps(content))
    old, count = re.subn(r', "crc32": \d+}}', "}}", finished.commits.read_text())
    assert count == 5
    finished.commits.write_text(old)
    assert finished.is_finished(finished.read_record())
    found = committed_of(finished, record)
    assert (found.video.blocks, found.video_has_changed) == (4, False)
    assert make_video(pipeline, PROMPT, finished, seconds=SECONDS + 2, existing="resume").video_crc32 is not None
