"""Pages of the archive, their layout, and their storage in host memory and on disk."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llrag_cli.errors import ArchiveError, LlragError
from llrag_cli.formatting import human

ALIGNMENT = 64  # bytes; every part of a page begins at a multiple
LayerKV = tuple[Tensor, Tensor]  # keys, not rotated, and values [..., tokens, heads, D] of one layer


@dataclass(frozen=True)
class Layout:
    """The consecutive parts of a layer's page: shape, type and first byte of each."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    eight_bit: bool

    @classmethod
    def of(cls, full: tuple[int, ...], dtype: torch.dtype, *, eight_bit: bool = False) -> Layout:
        """Keys and values of shape [tokens, heads, D] in their own type, or in eight bits after their scales."""
        tokens, heads, dim = full
        if not eight_bit:
            return cls((full, full), (dtype, dtype), eight_bit)
        scales = torch.float32
        return cls(
            ((1, heads, dim), (tokens, heads, 1), full, full), (scales, scales, torch.int8, torch.int8), eight_bit
        )

    @property
    def ends(self) -> list[int]:
        """The byte after each part and its padding."""
        ends, end = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = torch.Size(shape).numel() * dtype.itemsize
            end += -(-size // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        return ends

    @property
    def bytes(self) -> int:
        """Size of one layer's page."""
        return self.ends[-1]

    def parts(self, pages: Tensor) -> list[Tensor]:
        """Views [..., *shape] of the parts of pages [..., bytes], uint8."""
        views, start = [], 0
        for shape, dtype, end in zip(self.shapes, self.dtypes, self.ends, strict=True):
            size = torch.Size(shape).numel() * dtype.itemsize
            views.append(pages[..., start : start + size].view(dtype).unflatten(-1, shape))
            start = end
        return views

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """The parts [..., *shape] of keys and values [..., tokens, heads, D].

        In eight bits, keys have a scale for each channel (a few channels of keys are much larger than the rest) and
        values one for each token and head, as KIVI (arXiv 2402.02750) found best.
        """
        if not self.eight_bit:
            return keys, values
        by_channel, by_token = _scale(keys, dim=-3), _scale(values, dim=-1)
        return by_channel, by_token, _eight_bit(keys, by_channel), _eight_bit(values, by_token)

    def unpack(self, pages: Tensor, dtype: torch.dtype) -> LayerKV:
        """Keys and values [..., tokens, heads, D] of pages [..., bytes]."""
        if not self.eight_bit:
            keys, values = self.parts(pages)
            return keys, values
        by_channel, by_token, keys, values = self.parts(pages)
        return (keys * by_channel).to(dtype), (values * by_token).to(dtype)


def _scale(x: Tensor, *, dim: int) -> Tensor:
    """The size of one of 127 steps: float32, never 0."""
    return x.float().abs().amax(dim=dim, keepdim=True).clamp_min(1e-12) / 127


def _eight_bit(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).round().to(torch.int8)


class Pool(Protocol):
    """Storage for the pages of all frames, allocated at once: page n is row n of [pages, bytes], uint8."""

    bytes: int

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """Write a contiguous part of a page from its byte ``offset`` on."""
        ...

    def get(self, page: int) -> Tensor:
        """A page [bytes], to be copied before the next ``flush``."""
        ...

    def flush(self) -> None:
        """Called once the pages of a block are copied: release memory that is not needed."""
        ...


class HostPool:
    """Pages in one allocation of host memory, page-locked where a GPU copies from it."""

    def __init__(self, pages: int, size: int, *, device: torch.device) -> None:
        self.bytes = pages * size
        self._pages = torch.empty(pages, size, dtype=torch.uint8)
        if device.type == "cuda":  # torch's own pinned memory would be rounded up to a power of two
            runtime = torch.cuda.cudart()
            if (status := int(runtime.cudaHostRegister(self._pages.data_ptr(), self.bytes, 0))) != 0:
                raise ArchiveError(
                    f"CUDA cannot page-lock {human(self.bytes)} of host memory for the archive (error {status})",
                    tier="disk",
                )
            weakref.finalize(self, _unregister, self._pages)

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``; from a GPU the copy is queued on the current stream."""
        target = self._pages[page, offset : offset + part.numel() * part.element_size()]
        target.view(part.dtype).view(part.shape).copy_(part, non_blocking=True)

    def get(self, page: int) -> Tensor:
        """As ``Pool.get``."""
        return self._pages[page]

    def flush(self) -> None:
        """As ``Pool.flush``; everything stays."""


def _unregister(pages: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())


class DiskPool:
    """Pages in an unnamed file in ``folder``, or in the folder for temporary files; it ends with the process.

    All of its space is reserved at first, so that a disk that is too small is an error at once and not hours later. It
    is written through the file, where a full disk is an error, and read through a memory map, which does not stay
    resident.
    """

    def __init__(self, pages: int, size: int, *, folder: Path | None = None) -> None:
        self.bytes = pages * size
        self._size = size
        self._folder = folder or Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - as long as the pool
            reserve(self._file.fileno(), self.bytes)
        except OSError as error:
            raise self._full(error) from error
        self._map = mmap.mmap(self._file.fileno(), self.bytes)
        self._pages = torch.frombuffer(self._map, dtype=torch.uint8).view(pages, size)

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``; returns when the bytes are handed to the system."""
        content = memoryview(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        try:
            self._file.seek(page * self._size + offset)
            while content:
                written = self._file.write(content)
                content = content[written or 0 :]
        except OSError as error:
            raise self._full(error) from error

    def get(self, page: int) -> Tensor:
        """As ``Pool.get``."""
        return self._pages[page]

    def flush(self) -> None:
        """As ``Pool.flush``; pages that were read leave resident memory."""
        if hasattr(self._map, "madvise"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)

    def _full(self, error: OSError) -> LlragError:
        reason = (error.strerror or str(error)).lower()
        return ArchiveError(
            f"the archive cannot reserve {human(self.bytes)} of disk in `{self._folder}`: {reason}",
            tier="recompute",
            remedy="free some disk space, choose a folder on another disk, or ",
        )


def reserve(file: int, size: int) -> None:
    """Reserve ``size`` bytes of disk for an open file; raises ``OSError`` if there is not enough space."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros, done = bytes(1 << 20), os.lseek(file, 0, os.SEEK_SET)
    while done < size:
        done += os.write(file, zeros[: size - done])
