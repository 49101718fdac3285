"""The folder of one run: its files, its lock, and what can be read of it without torch."""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from filelock import FileLock, Timeout
from pydantic import Field, model_validator

from llrag_cli.config import RunConfig
from llrag_cli.errors import (
    DamagedRunError,
    FolderNotEmptyError,
    NotARunError,
    RunDiffersError,
    RunExistsError,
    RunLockedError,
    UnwritableError,
    UsageError,
    WriteFailedError,
)
from llrag_cli.files.durable import create_folder, remove_files, replace_text, require_own, unwritten
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, read_bytes, reason_of
from llrag_cli.files.records import Record, parse_lines
from llrag_cli.memory.strategies import MOST_RETRIEVED
from llrag_cli.runs.record import LARGEST, Count, RunRecord, differing, parse_record
from llrag_cli.scenes.timeline import Timeline

LOCKS = ("run.lock", "run.owner")
PARTIAL = re.compile(r"run\.(json|owner)\.[0-9]{1,10}\.partial")
OWNER = re.compile(r"process ([0-9]{1,10}) on (.{1,255})")  # the content of `run.owner`
LARGEST_LOG = 64 * MEGABYTE  # bytes of `memory.jsonl`: a video of some days


class RunFolder:
    """``video.mp4``, ``run.json`` (the record), ``memory.jsonl`` (frames retrieved for each block), and what is
    needed to resume: ``latents.safetensors`` and ``commits.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video = path / "video.mp4"
        self.record = path / "run.json"
        self.memory = path / "memory.jsonl"
        self.latents = path / "latents.safetensors"
        self.commits = path / "commits.jsonl"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of a run, whether or not they exist, without those of the lock."""
        return self.record, self.video, self.memory, self.latents, self.commits

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an exclusive lock on the folder, which is created if needed; the OS releases it on exit."""
        self.require_own_files()
        lock, owner = FileLock(self.path / "run.lock"), self.path / "run.owner"
        try:
            create_folder(self.path)
            lock.acquire(timeout=0)
            self._remove_partial()
            replace_text(owner, f"process {os.getpid()} on {platform.node()}")
        except Timeout:
            raise RunLockedError(self.path, self.owner() or "another process") from None
        except OSError as error:
            lock.release()
            raise UnwritableError(self.path, _reason(error)) from error
        except WriteFailedError:
            lock.release()
            raise
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def owner(self) -> str | None:
        """The process that locked the folder last, as it recorded itself: ``process 123 on host``; None: none did."""
        file = self.path / "run.owner"
        try:
            require_own(file)
            text = read_bytes(file).decode(errors="replace")
        except (OSError, UnreadableError, UsageError):
            return None
        return text if OWNER.fullmatch(text) else None

    def require_unlocked(self) -> None:
        """Raise ``RunLockedError`` if another process is writing the folder now."""
        if (self.path / "run.lock").exists():
            with self.lock():
                pass

    def _remove_partial(self) -> None:
        """Remove what a process that was killed had begun to write; the folder is locked."""
        for path in self.path.iterdir():
            if _is_partial(path):
                path.unlink(missing_ok=True)

    def require_free(self) -> None:
        """Raise an error if the folder contains a run, or other files."""
        if not self.path.is_dir() or all(path.name in LOCKS or _is_partial(path) for path in self.path.iterdir()):
            return
        raise RunExistsError(self.path) if self.record.exists() else FolderNotEmptyError(self.path)

    def require_same(self, config: RunConfig, timeline: Timeline, *, seed: int) -> None:
        """Raise an error if the folder has a run that cannot be continued as one of these settings.

        Left out is what is known only when memory has been planned.
        """
        if not self.record.exists():
            return
        record = self.read_record()
        now = record.model_copy(update={"timeline": timeline, "config": config, "seed": seed})
        if names := [name for name in differing(record, now) if name != "memory.archive"]:
            raise RunDiffersError(self.path, names)

    def require_own_files(self) -> None:
        """Raise an error if a file of the run is a link, or a pipe or device; the folder itself may be a link."""
        for file in (*self.files, *(self.path / name for name in LOCKS)):
            require_own(file)

    def require_writable(self) -> None:
        """Raise an error unless the folder can be written, or created; leaves nothing behind."""
        try:
            existing = _nearest_existing(self.path)
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UnwritableError(self.path, _reason(error)) from error

    def clear(self) -> None:
        """Remove the files of a run, and no others; a power cut does not bring back some of them."""
        try:
            remove_files(self.path, [file.name for file in self.files])
        except OSError as error:
            raise unwritten(self.path, error) from error

    def write_record(self, record: RunRecord) -> None:
        """Replace ``run.json`` atomically."""
        replace_text(self.record, record.to_json())

    def read_record(self) -> RunRecord:
        """The content of ``run.json``; raises ``LlragError`` if this is not a run folder, or it cannot be read."""
        if not self.path.is_dir():
            raise NotARunError(self.path)
        self.require_own_files()
        if not self.record.is_file():
            raise NotARunError(self.path, missing=self.record.name)
        try:
            content = read_bytes(self.record, limit=LARGEST)
        except (OSError, UnreadableError) as error:
            raise DamagedRunError(self.record, reason_of(error)) from error
        return parse_record(content, self.record)

    def blocks_committed(self) -> int:
        """How many blocks are committed, whether or not another process is writing the run."""
        try:
            require_own(self.commits)
            return self.commits.read_bytes().count(b"\n")
        except (OSError, UsageError):
            return 0

    def is_finished(self, record: RunRecord, *, seconds: float | None = None) -> bool:
        """Whether nothing is left to generate of the run, or of one that lasts ``seconds``."""
        config = record.config
        frames = record.latent_frames if seconds is None else config.latent_frames(seconds)
        return (
            record.is_complete
            and self.blocks_committed() * config.backbone.frames_per_block >= frames
            and all(file.is_file() for file in (self.video, self.memory, self.latents))
            and not self.video_has_changed(record)
        )

    def video_has_changed(self, record: RunRecord) -> bool:
        """Whether the video is there, but not as a complete run left it; False if the record has no checksum."""
        if not record.is_complete or record.video_crc32 is None:
            return False
        try:
            return checksum(self.video) != record.video_crc32
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DamagedRunError(self.video, _reason(error)) from error


@dataclass(frozen=True)
class BlockMemory:
    """What one block retrieved: its own first latent frame, the frames, most similar first, and their cosines.

    Frames of references have negative numbers. In a video of several shots, ``sources`` are the names of the shots and
    references that the frames are of.
    """

    frame: int
    retrieved: tuple[int, ...] = ()
    similarities: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()


Frame = Annotated[int, Field(ge=-(2**53), le=2**53)]


class _MemoryLine(Record):
    """A line of ``memory.jsonl``."""

    block: Count
    frame: Count
    retrieved: tuple[Frame, ...] = Field(max_length=MOST_RETRIEVED)
    similarities: tuple[Annotated[float, Field(ge=-2, le=2)], ...]
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len(self.similarities) != len(self.retrieved):
            raise ValueError(f"{len(self.retrieved)} frames are retrieved, with {len(self.similarities)} similarities")
        return self


def memory_line(block: int, memory: BlockMemory) -> bytes:
    """The line of ``memory.jsonl`` for a block."""
    content: dict[str, Any] = {
        "block": block,
        "frame": memory.frame,
        "retrieved": memory.retrieved,
        "similarities": [round(value, 6) for value in memory.similarities],
    }
    if memory.sources:
        content["sources"] = memory.sources
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def parse_memory(content: bytes, *, first: int = 0) -> tuple[BlockMemory, ...]:
    """The blocks in ``memory.jsonl``, without a last line that was cut off; raises ``ValueError`` for another line.

    The content may be that of the file from the line of block ``first`` on.
    """
    lines = parse_lines(_MemoryLine, content)
    if (wrong := next((n for n, line in enumerate(lines) if line.block != first + n), None)) is not None:
        raise UnreadableError(f"it is of block {lines[wrong].block}, not {first + wrong}", line=first + wrong + 1)
    return tuple(BlockMemory(line.frame, line.retrieved, line.similarities, line.sources) for line in lines)


def read_run(folder: RunFolder) -> tuple[RunRecord, tuple[BlockMemory, ...]]:
    """The record and the memory log of a run; a folder that is not a run, or a damaged one, is an error."""
    record = folder.read_record()
    if not folder.memory.is_file():
        raise NotARunError(folder.path, missing=folder.memory.name)
    try:
        return record, parse_memory(read_bytes(folder.memory, limit=LARGEST_LOG))
    except (OSError, UnreadableError) as error:
        raise DamagedRunError(folder.memory, reason_of(error)) from None


def checksum(file: Path) -> int:
    """CRC-32 of the content of a file. Raises ``OSError``."""
    crc32 = 0
    with file.open("rb") as opened:
        while part := opened.read(MEGABYTE):
            crc32 = zlib.crc32(part, crc32)
    return crc32


def unused_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or ``parent/name-2`` and so on if that exists."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def _is_partial(path: Path) -> bool:
    """Whether a file is the beginning of a new record or owner, under the name that ``replacing`` gives it."""
    return PARTIAL.fullmatch(path.name) is not None


def _nearest_existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    try:
        path.stat()
    except FileNotFoundError:
        return _nearest_existing(path.absolute().parent)
    return path


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
