"""A disk that may lose power: records what is written to a folder, and what could be left of it at any moment.

What was written is certain only after ``fsync`` of the file, and a name only after ``fsync`` of its folder. Everything
since then may be there, or not, in part, or as zeros.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

Data = Literal["kept", "torn", "zeros", "lost"]  # what became of writes that were not synced
Names = Literal["kept", "lost"]  # what became of names that were not synced
CUTS: tuple[tuple[Data, Names], ...] = (
    ("kept", "kept"),  # the process was killed
    ("torn", "kept"),  # it was killed within a write
    ("lost", "kept"),
    ("zeros", "kept"),
    ("kept", "lost"),
    ("lost", "lost"),
)
FOLDER = -1  # as the file of a `sync`


@dataclass(frozen=True)
class Event:
    """One step: ``create``, ``write``, ``truncate``, ``sync``, ``rename``, ``remove``, or a ``mark`` of a test."""

    kind: str
    file: int = FOLDER  # number of the file, whatever its name
    name: str = ""
    offset: int = 0  # of a write; of a rename, nothing
    data: bytes = b""
    target: str = ""  # of a rename


class Disk:
    """Records the writes to one folder; ``events`` begins with the files that it has, as if they were just synced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self._lock = threading.RLock()
        self._files: dict[int, int] = {}  # number of a file by inode
        self._count = 0
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                number = self._created(path)
                self.events.append(Event("write", number, data=path.read_bytes()))
                self.events.append(Event("sync", number))
            self.events.append(Event("sync"))
        self.start = len(self.events)  # events before this one are not of the recording

    def mark(self, name: str) -> None:
        """Note that something is done."""
        with self._lock:
            self.events.append(Event("mark", name=name))

    def names(self) -> list[str]:
        """Events in words: ``write latents.safetensors``, ``sync .`` and so on."""
        known = {FOLDER: "."}
        words = []
        for event in self.events:
            if event.kind == "create":
                known[event.file] = event.name
            elif event.kind == "rename":
                known |= {number: event.target for number, name in known.items() if name == event.name}
            subject = event.name or known[event.file]
            words.append(" ".join(filter(None, [event.kind, subject, event.target])))
        return words

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what this process writes through ``os`` and ``pathlib``.

        What libraries and other programs write is found when the file is synced or renamed.
        """
        with pytest.MonkeyPatch.context() as patched:
            for name in ("open", "write", "fsync", "ftruncate"):
                patched.setattr(os, name, self._recorded(getattr(self, f"_{name}"), getattr(os, name)))
            patched.setattr(Path, "replace", self._recorded(self._replace, Path.replace))
            patched.setattr(Path, "unlink", self._recorded(self._unlink, Path.unlink))
            yield

    def _recorded(self, note: Any, call: Any) -> Any:
        def both(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return note(call, *arguments, **options)

        return both

    def _created(self, path: Path) -> int:
        number = self._files[path.stat().st_ino] = self._count
        self._count += 1
        self.events.append(Event("create", number, path.name))
        return number

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, Path) and path.parent == self.folder and not path.name.endswith(".part.mp4")

    def _open(self, call: Any, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        new = isinstance(path, (str, Path)) and self._is_ours(Path(path)) and not Path(path).exists()
        descriptor = call(path, flags, *rest, **options)
        if new and flags & os.O_CREAT:
            self._created(Path(path))
        return descriptor

    def _file(self, descriptor: int) -> int | None:
        about = os.fstat(descriptor)
        if self.folder.is_dir() and about.st_ino == self.folder.stat().st_ino:
            return FOLDER
        if not about.st_nlink or stat.S_ISDIR(about.st_mode):  # of a folder inside, which has a disk of its own
            return None
        if about.st_ino not in self._files and self.folder.is_dir():  # a library has put it in place of another
            for path in self.folder.iterdir():
                if self._is_ours(path) and path.stat().st_ino == about.st_ino:
                    return self._created(path)
        return self._files.get(about.st_ino)

    def _write(self, call: Any, descriptor: int, data: Any) -> int:
        file = self._file(descriptor)
        offset = 0 if file is None else os.lseek(descriptor, 0, os.SEEK_CUR)
        count = call(descriptor, data)
        if file is not None:
            self.events.append(Event("write", file, offset=offset, data=bytes(data[:count])))
        return count

    def _fsync(self, call: Any, descriptor: int) -> None:
        call(descriptor)
        if (file := self._file(descriptor)) is not None:
            if file != FOLDER:
                self._catch_up(file, os.pread(descriptor, os.fstat(descriptor).st_size, 0))
            self.events.append(Event("sync", file))

    def _catch_up(self, file: int, content: bytes) -> None:
        """Note a write of others to a file."""
        changes = [event for event in self.events if event.file == file and event.kind in ("write", "truncate")]
        if _applied(b"", changes) != content:
            self.events += [Event("truncate", file), Event("write", file, data=content)]

    def _ftruncate(self, call: Any, descriptor: int, length: int) -> None:
        call(descriptor, length)
        if (file := self._file(descriptor)) is not None:
            self.events.append(Event("truncate", file, offset=length))

    def _replace(self, call: Any, path: Path, target: Path) -> Path:
        if self._is_ours(path) and (number := self._files.get(path.stat().st_ino)) is not None:
            self._catch_up(number, path.read_bytes())
        moved = call(path, target)
        if self._is_ours(path):
            self.events.append(Event("rename", name=path.name, target=Path(target).name))
        return moved

    def _unlink(self, call: Any, path: Path, **options: Any) -> None:
        there = self._is_ours(path) and path.exists()
        call(path, **options)
        if there:
            self.events.append(Event("remove", name=path.name))


def left(events: Sequence[Event], data: Data, names: Names) -> dict[str, bytes]:
    """The files of the folder after a power cut that follows the ``events``."""
    folder: dict[str, int] = {}
    synced_folder: dict[str, int] = {}
    synced: dict[int, bytes] = {}
    pending: dict[int, list[Event]] = {}
    for event in events:
        if event.kind == "create":
            folder[event.name] = event.file
            synced[event.file], pending[event.file] = b"", []
        elif event.kind in ("write", "truncate"):
            pending[event.file].append(event)
        elif event.kind == "rename":
            folder[event.target] = folder.pop(event.name)
        elif event.kind == "remove":
            del folder[event.name]
        elif event.kind == "sync" and event.file == FOLDER:
            synced_folder = dict(folder)
        elif event.kind == "sync":
            synced[event.file] = _applied(synced[event.file], pending[event.file])
            pending[event.file] = []
    present = folder if names == "kept" else synced_folder
    return {name: _content(synced[file], pending[file], data) for name, file in present.items()}


def _content(synced: bytes, pending: Sequence[Event], data: Data) -> bytes:
    if data == "lost":
        return synced
    if data == "torn" and pending and pending[-1].kind == "write":
        last = pending[-1]
        half = Event("write", last.file, offset=last.offset, data=last.data[: len(last.data) // 2])
        return _applied(synced, [*pending[:-1], half])
    whole = _applied(synced, pending)
    return synced[: len(whole)].ljust(len(whole), b"\0") if data == "zeros" else whole


def _applied(content: bytes, events: Sequence[Event]) -> bytes:
    changed = bytearray(content)
    for event in events:
        if event.kind == "truncate":
            del changed[event.offset :]
            changed.extend(bytes(event.offset - len(changed)))
        else:
            changed[event.offset : event.offset + len(event.data)] = event.data
    return bytes(changed)
