"""A file is replaced whole, or stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.durable import AppendFile, replace_text, replacing


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    for text in ("one\n", "two \N{EM DASH} 2\n"):
        replace_text(target, text, hint="make room")
        assert target.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "state.safetensors") as partial:
            save_file({"a": torch.ones(2)}, partial)
    finally:
        os.umask(before)
    assert (tmp_path / "state.safetensors").stat().st_mode & 0o777 == mode


def test_half_a_file_takes_no_place(tmp_path: Path) -> None:
    target = tmp_path / "state.safetensors"
    save_file({"a": torch.ones(2)}, target)
    with (
        pytest.raises(
            LlragError, match=r"^`.*state\.safetensors` could not be written: no space left on device$"
        ) as told,
        replacing(target, hint="make room") as partial,
    ):
        partial.write_bytes(b"half")
        assert load_file(target)["a"].tolist() == [1, 1]  # readers see the earlier one all the while
        raise OSError(28, "No space left on device")
    assert told.value.hint == "make room"
    assert load_file(target)["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "last.pt"
    torch.save({"epoch": 1}, target)
    with (
        pytest.raises(LlragError, match=r"`.*last\.pt` could not be written: \S"),
        replacing(target, hint="make room") as partial,
    ):
        partial.unlink()
        partial.symlink_to("/dev/full")
        torch.save({"epoch": 2, "rest": torch.zeros(10**6)}, partial)
    assert torch.load(target, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [target]
    with (
        pytest.raises(LlragError, match=r"`.*notes\.txt` could not be written: no space left on device"),
        replacing(tmp_path / "notes.txt", hint="make room") as partial,
    ):
        partial.unlink()
        partial.symlink_to("/dev/full")
        partial.write_text("text")


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_only_a_file_is_replaced(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere.txt").write_text("as it was")
    target = tmp_path / "results.json"
    if kind == "pipe":
        os.mkfifo(target)
    else:
        target.symlink_to(tmp_path / ("elsewhere.txt" if kind == "link" else "nothing.txt"))
    words = "is not a regular file" if kind == "pipe" else "is a symbolic link to `"
    with pytest.raises(UsageError, match=rf"`.*results\.json` {words}"):
        replace_text(target, "{}")
    with pytest.raises(UsageError, match=rf"`.*results\.json` {words}"):
        AppendFile(target)
    assert (tmp_path / "elsewhere.txt").read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_partial_file_is_never_one_that_is_there(tmp_path: Path) -> None:
    """Process numbers repeat, and a folder from elsewhere may hold links of any name."""
    (tmp_path / "elsewhere.txt").write_text("as it was")
    (tmp_path / f"results.json.{os.getpid()}.partial").symlink_to(tmp_path / "elsewhere.txt")
    replace_text(tmp_path / "results.json", "{}")
    assert (tmp_path / "results.json").read_text() == "{}"
    assert (tmp_path / "elsewhere.txt").read_text() == "as it was"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere.txt", "results.json"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    for place, reason in (("nowhere", "no such file or directory"), ("file", "not a directory")):
        with pytest.raises(LlragError, match=f"could not be written: {reason}"):
            replace_text(tmp_path / place / "results.json", "{}", hint="make room")
    assert (tmp_path / "file").read_text() == "as it was"


def test_interrupted_the_earlier_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("earlier")
    with pytest.raises(KeyboardInterrupt), replacing(target, hint="make room") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]
