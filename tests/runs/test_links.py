"""Run folders from elsewhere: no link in one leads a command to a file outside."""

from __future__ import annotations

import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from conftest import Llrag, call_llrag
from llrag_cli.errors import LinkedFileError
from llrag_cli.evaluation.metrics.backends import find_backend
from llrag_cli.evaluation.run import kept_scores
from llrag_cli.runs.export import shot_files
from llrag_cli.runs.folder import LOCKS, RunFolder

FEW = ("--seconds", "3", "--set", "sampler.steps=[1000]", "--backbone", "tiny")
FILES = ("run.json", "video.mp4", "memory.jsonl", "latents.safetensors", "commits.jsonl", *LOCKS)
OF_REFERENCES = ("run.json", "latents.safetensors")  # what is read of a finished run that is a reference
COMMANDS = {
    "resume": ("generate", "--resume", "run", "--seconds", "6"),
    "extend": ("extend", "run", "--seconds", "3"),
    "replace": ("generate", "a red circle", "--out", "run", "--force", *FEW),
    "inspect": ("inspect", "run"),
    "export": ("export", "run", "--no-timeline"),
    "reference": ("generate", "a green square", "--reference", "r=run", "--out", "new", *FEW),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    done = call_llrag(folder, "generate", "a red circle", "--out", "run", *FEW)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "outside.txt"
    file.write_text("as it was")
    return file


def test_every_file_is_tried(run: Path) -> None:
    assert {file.name for file in run.iterdir()} | set(LOCKS) == set(FILES)
    assert {file.name for file in RunFolder(run).files} | set(LOCKS) == set(FILES)


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command, name in product(COMMANDS, FILES) if command != "reference" or name in OF_REFERENCES],
)
def test_no_file_of_a_run_is_a_link(llrag: Llrag, run: Path, outside: Path, command: str, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    done = llrag(*COMMANDS[command])
    assert done.returncode == 2
    assert f"error: `run/{name}` is a symbolic link to `{outside}`\n\nhint: " in done.stderr.replace(
        f"{run.parent}/run", "run"
    )
    assert outside.read_text() == "as it was"
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.parametrize("name", FILES)
def test_content_is_not_read_through_a_link_either(llrag: Llrag, run: Path, tmp_path: Path, name: str) -> None:
    """The file itself, moved elsewhere, would be valid."""
    if name in LOCKS:
        (run / name).touch()
    (run / name).rename(tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved")
    content = (tmp_path / "moved").read_bytes()
    for command in ("resume", "inspect"):
        done = llrag(*COMMANDS[command])
        assert done.returncode == 2 and f"`run/{name}` is a symbolic link" in done.stderr
    assert (tmp_path / "moved").read_bytes() == content


@pytest.mark.parametrize("name", ["memory.png", "memory.html"])
def test_inspect_writes_no_link(llrag: Llrag, run: Path, outside: Path, name: str) -> None:
    (run / name).symlink_to(outside)
    done = llrag("inspect", "run")
    assert done.returncode == 2 and f"`run/{name}` is a symbolic link" in done.stderr
    assert outside.read_text() == "as it was"
    assert {file.name for file in run.iterdir()} - set(FILES) == {name}


@pytest.mark.parametrize(
    "name", ["export", "export/export.json", "export/video.mp4", "export/shot", "export/timeline.otio"]
)
def test_export_writes_no_link(llrag: Llrag, run: Path, outside: Path, tmp_path: Path, name: str) -> None:
    if name == "export/shot":
        name = f"export/{shot_files(RunFolder(run).read_record().timeline)[0].name}"
    if name == "export":
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/export.json").write_text('{"files": ["mine.txt"]}')
        (tmp_path / "folder/mine.txt").write_text("as it was")
        (run / name).symlink_to(tmp_path / "folder")
    else:
        (run / "export").mkdir()
        (run / name).symlink_to(outside)
    done = llrag("export", "run", "--force")
    assert done.returncode == 2 and f"`run/{name}` is a symbolic link" in done.stderr
    assert outside.read_text() == "as it was"
    if name == "export":
        assert len(list((tmp_path / "folder").iterdir())) == 2


def test_scores_are_not_read_through_a_link(run: Path, outside: Path) -> None:
    backend = find_backend("offline", "cpu")
    (run / "scores-offline.json").symlink_to(outside)
    with pytest.raises(LinkedFileError, match=r"scores-offline\.json` is a symbolic link"):
        kept_scores(run, RunFolder(run).read_record().config, backend)


def test_a_pipe_is_not_waited_for(llrag: Llrag, run: Path) -> None:
    (run / "commits.jsonl").unlink()
    os.mkfifo(run / "commits.jsonl")
    for command in ("resume", "inspect", "export"):
        done = llrag(*COMMANDS[command])
        assert done.returncode == 2 and "`run/commits.jsonl` is not a regular file" in done.stderr


def test_a_run_folder_may_be_a_link(llrag: Llrag, run: Path, tmp_path: Path) -> None:
    """So may any folder above it: large disks are mounted elsewhere."""
    (tmp_path / "disk").mkdir()
    run.rename(tmp_path / "disk/run")
    run.symlink_to(tmp_path / "disk/run")
    (tmp_path / "films").symlink_to(tmp_path / "disk")
    for command in (
        ("inspect", "run"),
        ("generate", "--resume", "films/run", "--seconds", "6"),
        ("inspect", "films/run"),
    ):
        done = llrag(*command)
        assert done.returncode == 0, done.stderr
