from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llrag_cli.errors import LlragError
from llrag_cli.files.durable import AppendFile, replace_text


def fail_after(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """The disk takes so many bytes more, and then no more."""
    left = [taken]
    write = os.write

    def limited(number: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(number, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr("llrag_cli.files.durable.os.write", limited)


def test_a_replaced_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    replace_text(file, "old")
    with monkeypatch.context() as patched:
        fail_after(patched, 2)
        with pytest.raises(LlragError, match=r"`.*run\.json` could not be written: no space left on device"):
            replace_text(file, "newer")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    replace_text(file, "newer")
    assert file.read_bytes() == b"newer"


def test_a_piece_is_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "log")
    file.append(b"first\n")
    with monkeypatch.context() as patched:
        fail_after(patched, 3)
        with pytest.raises(LlragError, match="no space left"):
            file.append(b"second\n")
    assert file.path.read_bytes() == b"first\n"
    file.append(b"third\n")
    file.overwrite(b"F")
    file.append(b"4")
    file.close()
    assert file.path.read_bytes() == b"First\nthird\n4"


def test_what_the_system_takes_bit_by_bit_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("llrag_cli.files.durable.os.write", lambda number, data: write(number, data[:3]))
    with AppendFile(tmp_path / "log") as file:
        file.append(b"0123456789")
    assert file.path.read_bytes() == b"0123456789"


def test_it_goes_on_after_what_is_certain(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"certain, uncertain")
    with AppendFile(path, length=7) as file:
        file.append(b"ty")
    assert path.read_bytes() == b"certainty"
    with pytest.raises(LlragError, match="ends after 9 of 10 bytes"):
        AppendFile(path, length=10)
