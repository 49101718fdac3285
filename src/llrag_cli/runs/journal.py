"""Commits of a run, block by block: latents, memory log and video, and a line with their lengths.

The files only grow, and the line in ``commits.jsonl`` is written last. However a run ends, everything up to its last
complete line is on disk; what lies beyond is cut off when the run is resumed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.errors import DamagedRunError
from llrag_cli.files.durable import AppendFile, replace_text
from llrag_cli.files.guarded import UnreadableError, read_bytes, reason_of
from llrag_cli.files.records import parse_lines
from llrag_cli.runs.commits import START, Commit, VideoMark
from llrag_cli.runs.folder import LARGEST_LOG, BlockMemory, RunFolder, memory_line, parse_memory

HEADER = 4096  # bytes kept for the header of the latents' file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Committed:
    """What is committed of a run: the latents [1, F, C, H, W] of its blocks, and the lengths of its files."""

    latents: Tensor | None = None  # None: no block yet
    memory: tuple[BlockMemory, ...] = ()  # of each block
    memory_bytes: int = 0
    commit_bytes: int = 0
    video: VideoMark = START
    video_has_changed: bool = False  # the video is as long as it was, but not the same

    @property
    def blocks(self) -> int:
        """How many blocks are committed."""
        return len(self.memory)


class Journal:
    """The files of a run, continued after what is ``committed``."""

    def __init__(
        self, folder: RunFolder, *, shape: tuple[int, int, int], dtype: torch.dtype, committed: Committed | None = None
    ) -> None:
        committed = committed or Committed()
        self.blocks = committed.blocks
        self._shape, self._dtype = shape, dtype
        self._frame_bytes = math.prod(shape) * dtype.itemsize
        frames = 0 if committed.latents is None else committed.latents.shape[1]
        self._commits = AppendFile(folder.commits, length=committed.commit_bytes)
        self._memory = AppendFile(folder.memory, length=committed.memory_bytes)
        self._latents = AppendFile(folder.latents, length=HEADER + frames * self._frame_bytes if frames else 0)
        if not frames:
            self._latents.append(self._header())

    @property
    def frames(self) -> int:
        """Latent frames committed."""
        return (self._latents.length - HEADER) // self._frame_bytes

    def commit(self, memory: BlockMemory, latents: Tensor, video: VideoMark) -> None:
        """Commit the next block: its latents [1, T, C, H, W] on the CPU, what it retrieved, and the video so far."""
        content = latents.contiguous().view(torch.uint8).numpy().tobytes()
        self._latents.append(content)
        line = memory_line(self.blocks, memory)
        self._memory.append(line)
        commit = Commit(
            block=self.blocks,
            frames=self.frames,
            crc32=zlib.crc32(line, zlib.crc32(content)),
            memory_bytes=self._memory.length,
            video=video,
        )
        self._commits.append((json.dumps(commit.model_dump()) + "\n").encode())
        self.blocks += 1

    def close(self) -> None:
        """Close the files; the latents are then an ordinary safetensors file."""
        try:
            self._latents.overwrite(self._header())
        finally:
            for file in (self._latents, self._memory, self._commits):
                file.close()

    def _header(self) -> bytes:
        frames = max(0, self.frames)
        about = {
            "latents": {
                "dtype": DTYPES[self._dtype],
                "shape": [frames, *self._shape],
                "data_offsets": [0, frames * self._frame_bytes],
            }
        }
        text = json.dumps(about).encode().ljust(HEADER - 8)
        return len(text).to_bytes(8, "little") + text


def replace_marks(folder: RunFolder, marks: Sequence[VideoMark]) -> None:
    """Replace ``commits.jsonl`` by one with the same commits and other marks of the video, one for each block."""
    commits, _ = _read_commits(folder.commits)
    lines = [
        json.dumps(commit.model_copy(update={"video": mark}).model_dump()) + "\n"
        for commit, mark in zip(commits, marks, strict=True)
    ]
    replace_text(folder.commits, "".join(lines))


def read_committed(folder: RunFolder, *, shape: tuple[int, int, int], dtype: torch.dtype) -> Committed:
    """What is committed of a run; raises ``LlragError`` if a file has lost what was committed, or was changed."""
    commits, length = _read_commits(folder.commits)
    if not commits:
        return Committed()
    frame_bytes = math.prod(shape) * dtype.itemsize
    frames, memory_bytes = commits[-1].frames, commits[-1].memory_bytes
    content = memoryview(_read(folder.latents, HEADER + frames * frame_bytes))[HEADER:]
    lines = _read(folder.memory, memory_bytes)
    start, line_start = 0, 0
    for commit in commits:
        line = lines[line_start : commit.memory_bytes]
        latents = content[start * frame_bytes : commit.frames * frame_bytes]
        if zlib.crc32(line, zlib.crc32(latents)) != commit.crc32:
            raise DamagedRunError(folder.latents, f"it or memory.jsonl has changed in block {commit.block}")
        start, line_start = commit.frames, commit.memory_bytes
    try:
        memory = parse_memory(lines)
    except UnreadableError as error:
        raise DamagedRunError(folder.memory, f"it has a line that is not a block: {reason_of(error)}") from None
    if len(memory) != len(commits):
        raise DamagedRunError(folder.memory, f"it has {len(memory)} blocks, {len(commits)} are committed")
    video, changed = _intact_video(folder.video, [commit.video for commit in commits])
    tensor = torch.frombuffer(bytearray(content), dtype=dtype).view(1, frames, *shape)
    return Committed(tensor, memory, memory_bytes, length, video, changed)


def _intact_video(file: Path, marks: Sequence[VideoMark]) -> tuple[VideoMark, bool]:
    """The last mark up to which a video is what was written, and whether it has changed after that.

    The rest is written again, from the latents; a video that is missing or shorter has not changed.
    """
    intact = START
    try:
        with file.open("rb") as opened:
            crc32 = 0
            for mark in dict.fromkeys(marks):
                part = opened.read(mark.bytes - intact.bytes)
                if len(part) < mark.bytes - intact.bytes:
                    return intact, False
                crc32 = zlib.crc32(part, crc32)
                if mark.crc32 not in (None, crc32):
                    return intact, True
                intact = mark.model_copy(update={"crc32": crc32})
    except FileNotFoundError:
        return START, False
    except OSError as error:
        raise DamagedRunError(file, (error.strerror or str(error)).lower()) from error
    return intact, False


def _read_commits(file: Path) -> tuple[list[Commit], int]:
    """The complete lines of ``commits.jsonl``, and their length in bytes; none if the file does not exist."""
    try:
        content = read_bytes(file, limit=4 * LARGEST_LOG)
    except FileNotFoundError:
        return [], 0
    except (OSError, UnreadableError) as error:
        raise DamagedRunError(file, reason_of(error)) from error
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[:-1].rfind(b"\n") + 1
    if b"\0" in whole[last:]:  # a power cut may leave zeros where a line was not on disk yet
        whole = whole[:last]
    try:
        commits = parse_lines(Commit, whole)
    except UnreadableError as error:
        raise DamagedRunError(file, f"it has a line that is not a commit: {reason_of(error)}") from None
    lengths = [(0, 0), *((commit.frames, commit.memory_bytes) for commit in commits)]
    grows = all(before[0] < after[0] and before[1] < after[1] for before, after in pairwise(lengths))
    grows &= all(before.video.bytes <= after.video.bytes for before, after in pairwise(commits))
    if [commit.block for commit in commits] != list(range(len(commits))) or not grows:
        raise DamagedRunError(file, "its lines are out of order")
    return commits, len(whole)


def _read(file: Path, length: int) -> bytes:
    """The first bytes of a file; fewer is an error."""
    try:
        if file.stat().st_size < length:
            raise DamagedRunError(file, "it is shorter than it was")
        with file.open("rb") as opened:
            return opened.read(length)
    except OSError as error:
        raise DamagedRunError(file, (error.strerror or str(error)).lower()) from error
