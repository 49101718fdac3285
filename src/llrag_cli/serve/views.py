"""What is there of a run, read from its files while it grows; nothing is read twice."""

from __future__ import annotations

import os
import platform
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.guarded import UnreadableError, reason_of
from llrag_cli.files.records import parse_lines
from llrag_cli.runs.commits import Commit
from llrag_cli.runs.folder import LARGEST_LOG, OWNER, BlockMemory, RunFolder, parse_memory
from llrag_cli.runs.mp4 import boxes
from llrag_cli.runs.record import RunRecord

OPENING = 65_536  # bytes in which the description of the track lies


@dataclass(frozen=True)
class BlockSeen:
    """A committed block: what it retrieved, and when its commit was seen, in seconds since the epoch."""

    memory: BlockMemory
    seen: float | None  # None: it was there before


class RunView:
    """A run folder as others see it; ``refresh`` reads what is new. The methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)
        self.record: RunRecord | None = None
        self.damage: str | None = None  # why the record cannot be read
        self.blocks: tuple[BlockSeen, ...] = ()  # those that are committed
        self.marked_bytes = 0  # of the video, in whole segments
        self.video_bytes = 0
        self.changed_at = 0.0  # seconds since the epoch, of the record
        self.codecs: str | None = None  # as a browser's Media Source names them
        self._stamps: dict[str, tuple[int, int]] = {}
        self._commit_bytes = self._memory_bytes = 0
        self._read_once = False
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what has changed since the last time; of a run with a link among its files, nothing."""
        with self._lock:
            try:
                self.folder.require_own_files()
            except UsageError as error:
                self._forget()
                self.damage = error.problem
                return
            if self._has_changed(self.folder.record):
                self._read_record()
            if self._has_changed(self.folder.commits):
                self._read_commits()
            self._has_changed(self.folder.video)
            self.video_bytes = self._stamps.get(self.folder.video.name, (0, 0))[0]
            if self.codecs is None and self.video_bytes:
                self.codecs = codecs_of(self.folder.video)
            self._read_once = True

    @property
    def owner(self) -> str | None:
        """The process that is writing the run now, as it recorded itself; None if there is none."""
        text = self.folder.owner()
        match = None if text is None else OWNER.fullmatch(text)
        if match is None or (match[2] == platform.node() and not _is_alive(int(match[1]))):
            return None
        return text

    def _forget(self) -> None:
        self.record, self.codecs, self._stamps = None, None, {}
        self.video_bytes = 0
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self.blocks, self._commit_bytes, self._memory_bytes, self.marked_bytes = (), 0, 0, 0

    def _has_changed(self, file: Path) -> bool:
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(file)
        except OSError:
            return self._stamps.pop(file.name, None) is not None
        stamp = (status.st_size, status.st_mtime_ns)
        before = self._stamps.get(file.name)
        self._stamps[file.name] = stamp
        return stamp != before

    def _read_record(self) -> None:
        try:
            self.record, self.damage = self.folder.read_record(), None
            self.changed_at = self.folder.record.stat().st_mtime
        except (LlragError, OSError) as error:
            self.record, self.damage = None, str(error)

    def _read_commits(self) -> None:
        """Read the lines that were appended; where the file is shorter than it was, all of it."""
        size, changed = self._stamps.get(self.folder.commits.name, (0, 0))
        if size < self._commit_bytes:
            self._forget_blocks()
        content = _appended(self.folder.commits, self._commit_bytes)
        lines = content[: content.rfind(b"\n") + 1]
        try:
            commits = parse_lines(Commit, lines)
            if not commits:
                return
            end = commits[-1].memory_bytes
            log = _appended(self.folder.memory, self._memory_bytes)[: end - self._memory_bytes]
            found = parse_memory(log, first=len(self.blocks))
            if len(found) != len(commits):
                return
            self.marked_bytes = commits[-1].video.bytes
        except UnreadableError as error:
            self.damage = f"`{self.folder.commits}` cannot be read: {reason_of(error)}"
            return
        seen = changed / 1e9 if self._read_once else None
        self.blocks += tuple(BlockSeen(memory, seen) for memory in found)
        self._commit_bytes += len(lines)
        self._memory_bytes = end


def _appended(file: Path, start: int) -> bytes:
    """The content of a file from a position on; empty if there is no such file."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            return opened.read(4 * LARGEST_LOG)
    except OSError:
        return b""


def _is_alive(process: int) -> bool:
    if not process:
        return False  # to the system it would be this process's own group
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def codecs_of(video: Path) -> str | None:
    """The codec of an H.264 mp4 for Media Source, ``avc1.64000c``; None as long as its track is not described."""
    try:
        with video.open("rb") as file:
            opening = file.read(OPENING)
    except OSError:
        return None
    place = opening.find(b"avcC")
    if place < 0 or len(opening) < place + 8:
        return None
    profile, compatibility, level = opening[place + 5 : place + 8]  # after the version
    return f"avc1.{profile:02x}{compatibility:02x}{level:02x}"


def whole_boxes(content: bytes) -> int:
    """How many of the first bytes are whole boxes of an mp4."""
    end = 0
    try:
        for box in boxes(content):
            end = box.end
    except ValueError:
        return end
    return end
