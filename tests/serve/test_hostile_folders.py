"""A folder of runs with damaged and hostile files: they are answered in a sentence, and lead to no other file."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llrag_cli import Pipeline, RunFolder, load_config, make_video
from llrag_cli.serve.folders import identifier_of
from serve.serving import PROMPT, Unserved

Change = Callable[[Path], object]
SECRET = b"not for others" * 100
ID = identifier_of("run")
CHARACTER = "char_" + "0" * 24
WAYS = ("", "/content", "/content?variant=thumbnail", "/live", "/events", "/frames/0.jpg", "/export?format=mp4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    few = ("sampler.steps=[1000]", "memory.window=5", "memory.retrieved=1", "memory.guard=0")
    folder = RunFolder(tmp_path_factory.mktemp("made") / "run")
    make_video(Pipeline.load(load_config("tiny", settings=few), device="cpu"), PROMPT, folder, seconds=2)
    return folder


@pytest.fixture
def runs(made: RunFolder, tmp_path: Path) -> Path:
    """A folder with one run, beside a file that nobody may see."""
    (tmp_path / "secret").write_bytes(SECRET)
    shutil.copytree(made.path, tmp_path / "runs/run")
    return tmp_path / "runs"


def text(name: str, content: str | bytes) -> Change:
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def link(name: str) -> Change:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to("../../secret")

    return change


def pipe(name: str) -> Change:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return change


def folder(name: str) -> Change:
    def change(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return change


def commits(old: str, new: str) -> Change:
    def change(run: Path) -> None:
        file = run / "commits.jsonl"
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    return change


HOSTILE: dict[str, Change] = {
    **{f"link {name}": link(name) for name in ("run.json", "video.mp4", "commits.jsonl", "memory.jsonl", "run.owner")},
    **{f"pipe {name}": pipe(name) for name in ("run.json", "video.mp4", "commits.jsonl", "memory.jsonl", "run.owner")},
    **{f"folder {name}": folder(name) for name in ("run.json", "video.mp4", "commits.jsonl", "memory.jsonl")},
    "commits nested": text("commits.jsonl", "[" * 100_000 + "\n"),
    "commits without end": commits('"bytes": ', '"bytes": 1e999, "old": '),
    "commits of no object": text("commits.jsonl", "[1]\n"),
    "memory nested": text("memory.jsonl", "[" * 100_000 + "\n"),
    "record nested": text("run.json", "[" * 100_000),
    "job nested": text("job.json", "[" * 100_000),
    "owner of no text": text("run.owner", b"\xff\xfe"),
    "owner of no process": text("run.owner", f"process {10**30} on {platform.node()}"),
    "owner of all processes": text("run.owner", f"process 0 on {platform.node()}"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_run_is_answered_in_a_sentence(runs: Path, change: Change) -> None:
    change(runs / "run")
    server = Unserved(runs)
    for way in WAYS:
        answer = server.get(f"/v1/videos/{ID}{way}")
        assert answer.status_code in (200, 204, 400, 404, 409), (way, answer.text)
        assert SECRET not in answer.content, way
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]
    for path in ("/v1/videos", "/v1/llrag/library"):
        assert [video["id"] for video in server.get(path).json()["data"]] in ([ID], [])
    longer = server.post("/v1/videos/extensions", {"video": ID, "seconds": 1})
    assert longer.status_code in (200, 404, 409), longer.text
    assert (runs.parent / "secret").read_bytes() == SECRET


def test_a_video_is_not_sent_through_a_link(runs: Path) -> None:
    link("video.mp4")(runs / "run")
    server = Unserved(runs)
    shown = server.get(f"/v1/videos/{ID}").json()
    assert shown["status"] == "failed" and "symbolic link" in shown["error"]["message"]
    assert server.get(f"/v1/videos/{ID}/content").status_code == 404
    (runs / "run/video.mp4").unlink()
    assert "symbolic link" not in str(server.get(f"/v1/videos/{ID}").json()["error"])  # it is looked at again


def test_a_dead_owner_writes_nothing(runs: Path) -> None:
    for owner in (f"process 0 on {platform.node()}", f"process {10**10 - 1} on {platform.node()}", "process 1 on"):
        (runs / "run/run.owner").write_text(owner)
        assert Unserved(runs).queue.get(ID).view.owner is None, owner
    (runs / "run/run.owner").write_text("process 1 on elsewhere")
    assert Unserved(runs).queue.get(ID).view.owner == "process 1 on elsewhere"


def test_runs_of_any_seed_and_age_can_be_extended(runs: Path) -> None:
    record = runs / "run/run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "seed": 2**64 - 1}))
    os.utime(record, (-5e8, -5e8))
    answer = Unserved(runs).post("/v1/videos/extensions", {"video": ID, "seconds": 1})
    assert answer.status_code == 200, answer.text
    assert answer.json()["llrag"]["seed"] == 2**64 - 1


@pytest.mark.parametrize("kind", ["folder", "file", "description", "pipe", "other"])
def test_a_hostile_character_is_none(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    kept = tmp_path / ("elsewhere" if kind == "folder" else f"runs/{CHARACTER}")
    kept.mkdir(parents=True)
    named = "char_" + "1" * 24 if kind == "other" else CHARACTER
    about = {"id": named, "name": "Mara", "created_at": 1.0, "file": "character.png"}
    (kept / "character.json").write_text(json.dumps(about))
    shutil.copy(Path(__file__).parents[2] / "docs/demo.png", kept / "character.png")
    (tmp_path / "runs").mkdir(exist_ok=True)
    server = Unserved(tmp_path / "runs")
    if kind == "folder":
        (tmp_path / "runs" / CHARACTER).symlink_to("../elsewhere")
    elif kind == "pipe":
        pipe("character.png")(kept)
    elif kind != "other":
        link({"file": "character.png", "description": "character.json"}[kind])(kept)
    assert server.get("/v1/videos/characters").json()["data"] == []
    assert server.get("/v1/llrag/library").json()["characters"] == []
    for way in ("", "/picture"):
        answer = server.get(f"/v1/videos/characters/{CHARACTER}{way}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
