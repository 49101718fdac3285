"""What is certain of an unfinished run: block by block, latents, memory log and video, and a record of their lengths.

All of them only grow, and the record comes last, so whatever stops a run, what the last whole line of
``commits.jsonl`` vouches for is there; what lies beyond it is cut off when the run goes on.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llrag_cli.engine.rollout import Block
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import AppendFile

HEADER = 4096  # bytes kept for the header of the latents' file
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class VideoMark:
    """Where a video file stands after whole segments."""

    bytes: int = 0
    frames: int = 0
    fragments: int = 0
    blocks: int = 0


@dataclass(frozen=True)
class Committed:
    """What a run has for certain: the latents [1, F, C, H, W] of its blocks, and where its files stand."""

    latents: Tensor | None = None  # None: no block yet
    blocks: int = 0
    recalled: tuple[tuple[int, ...], ...] = ()  # of each block
    memory_bytes: int = 0
    commit_bytes: int = 0
    video: VideoMark = VideoMark()


class Journal:
    """The files of a run as it goes on after what is ``committed``."""

    def __init__(
        self, folder: Path, *, shape: tuple[int, int, int], dtype: torch.dtype, committed: Committed | None = None
    ) -> None:
        committed = committed or Committed()
        self.blocks = committed.blocks
        self._shape, self._dtype = shape, dtype
        self._frame_bytes = math.prod(shape) * dtype.itemsize
        frames = 0 if committed.latents is None else committed.latents.shape[1]
        self._commits = AppendFile(folder / "commits.jsonl", length=committed.commit_bytes)
        self._memory = AppendFile(folder / "memory.jsonl", length=committed.memory_bytes)
        at = HEADER + frames * self._frame_bytes if frames else 0
        self._latents = AppendFile(folder / "latents.safetensors", length=at)
        if not frames:
            self._latents.append(self._header())

    @property
    def frames(self) -> int:
        """Latent frames committed."""
        return (self._latents.length - HEADER) // self._frame_bytes

    def commit(self, block: Block, latents: Tensor, video: VideoMark) -> None:
        """Make a block [1, T, C, H, W] certain; ``latents`` are its latents on the CPU."""
        content = latents.contiguous().view(torch.uint8).numpy().tobytes()
        self._latents.append(content)
        recalled = (json.dumps(memory_line(block)) + "\n").encode()
        self._memory.append(recalled)
        line = {
            "block": block.index,
            "frames": self.frames,
            "crc32": zlib.crc32(recalled, zlib.crc32(content)),
            "memory_bytes": self._memory.length,
            "video": asdict(video),
        }
        self._commits.append((json.dumps(line) + "\n").encode())
        self.blocks = block.index + 1

    def close(self) -> None:
        """Let the files go; the latents are then a safetensors file like any other."""
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


def blocks_committed(folder: Path) -> int:
    """How many blocks the run of a folder has committed, while somebody writes it or not."""
    try:
        return (folder / "commits.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def memory_line(block: Block) -> dict[str, Any]:
    """What a block recalled, as ``memory.jsonl`` has it."""
    return {
        "block": block.index,
        "frame": block.start,
        "recalled": block.recalled[0] if block.recalled else [],
        "similarities": [round(value, 6) for value in block.similarities[0]] if block.similarities else [],
    }


def read_committed(folder: Path, *, shape: tuple[int, int, int], dtype: torch.dtype) -> Committed:
    """What a run folder has for certain; raises ``LlragError`` for a file that lost what was committed."""
    file = folder / "commits.jsonl"
    lines, length = _whole_lines(file)
    if not lines:
        return Committed()
    last = lines[-1]
    frame_bytes = math.prod(shape) * dtype.itemsize
    try:
        blocks, frames, memory_bytes = int(last["block"]) + 1, int(last["frames"]), int(last["memory_bytes"])
        video = VideoMark(**{name: int(value) for name, value in last["video"].items()})
        starts = [(0, 0), *((int(line["frames"]), int(line["memory_bytes"])) for line in lines)]
        sums = [int(line["crc32"]) for line in lines]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(file, "has a line that is no commit") from None
    if [line.get("block") for line in lines] != list(range(blocks)) or sorted(set(starts)) != starts:
        raise _damaged(file, "has lines out of order")
    content = _read(folder / "latents.safetensors", HEADER + frames * frame_bytes)[HEADER:]
    memory = _read(folder / "memory.jsonl", memory_bytes)
    recalled = []
    for number, (start, stop, checksum) in enumerate(zip(starts[:-1], starts[1:], sums, strict=True)):
        line = memory[start[1] : stop[1]]
        if zlib.crc32(line, zlib.crc32(content[start[0] * frame_bytes : stop[0] * frame_bytes])) != checksum:
            raise _damaged(folder / "latents.safetensors", f"or memory.jsonl has changed in block {number}")
        recalled.append(tuple(map(int, json.loads(line)["recalled"])))
    latents = torch.frombuffer(bytearray(content), dtype=dtype).view(1, frames, *shape)
    file = folder / "video.mp4"
    if not file.exists() or file.stat().st_size < video.bytes:
        video = VideoMark()  # it is made again, from the latents
    return Committed(latents, blocks, tuple(recalled), memory_bytes, length, video)


def _whole_lines(file: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The lines of a file that were written to their end, and their bytes; none if there is no file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise LlragError(f"`{file}` cannot be read: {error.strerror}", hint="may you read it?") from error
    whole = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        raise _damaged(file, "has a line that cannot be read") from None
    if not all(isinstance(line, dict) for line in lines):
        raise _damaged(file, "has a line that is no commit")
    return lines, len(whole)


def _read(file: Path, length: int) -> bytes:
    """The first bytes of a file; fewer is an error."""
    try:
        with file.open("rb") as opened:
            content = opened.read(length)
    except OSError as error:
        raise LlragError(
            f"`{file}` cannot be read: {(error.strerror or str(error)).lower()}", hint="restore it from a copy"
        ) from error
    if len(content) < length:
        raise _damaged(file, "is shorter than it was")
    return content


def _damaged(file: Path, what: str) -> LlragError:
    return LlragError(f"`{file}` {what}", hint="restore it from a copy, or make the run anew with `--force`")
