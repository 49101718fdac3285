"""Pages of the archive, what one looks like, and the places where they rest: host memory and disk."""

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

from llrag_cli.errors import LlragError
from llrag_cli.formatting import human

ALIGNMENT = 64  # bytes; every part of a page begins at a multiple
LayerKV = tuple[Tensor, Tensor]  # keys, not rotated, and values [..., tokens, heads, D] of one layer


@dataclass(frozen=True)
class Layout:
    """The parts of a layer's page, one after the other: shape, type and first byte of each."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    eight_bit: bool

    @classmethod
    def of(cls, full: tuple[int, ...], dtype: torch.dtype, *, eight_bit: bool = False) -> Layout:
        """Keys and values of shape [tokens, heads, D] as they are, or in eight bits with scales before them."""
        tokens, heads, dim = full
        if not eight_bit:
            return cls((full, full), (dtype, dtype), eight_bit)
        scales = torch.float32
        return cls(
            ((1, heads, dim), (tokens, heads, 1), full, full), (scales, scales, torch.int8, torch.int8), eight_bit
        )

    @property
    def ends(self) -> list[int]:
        """The byte after each part, and its padding."""
        ends, end = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = torch.Size(shape).numel() * dtype.itemsize
            end += -(-size // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        return ends

    @property
    def bytes(self) -> int:
        """Of one layer's page."""
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
    """What one step of 127 is worth: float32, never 0."""
    return x.float().abs().amax(dim=dim, keepdim=True).clamp_min(1e-12) / 127


def _eight_bit(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).round().to(torch.int8)


class Pool(Protocol):
    """Room for the pages of all frames, made at once: page n is ``row`` n of [pages, bytes], uint8."""

    bytes: int

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """Write a contiguous part of a page from its byte ``offset`` on."""
        ...

    def get(self, page: int) -> Tensor:
        """A page [bytes], to be copied at once."""
        ...

    def rest(self) -> None:
        """A block's pages were copied: hold no more memory than need be."""
        ...


class HostPool:
    """Pages in one piece of host memory, page-locked where a GPU copies from it."""

    def __init__(self, pages: int, size: int, *, device: torch.device) -> None:
        self.bytes = pages * size
        self._pages = torch.empty(pages, size, dtype=torch.uint8)
        if device.type == "cuda":  # torch's own pinned memory would be rounded up to a power of two
            runtime = torch.cuda.cudart()
            if (status := int(runtime.cudaHostRegister(self._pages.data_ptr(), self.bytes, 0))) != 0:
                raise LlragError(
                    f"CUDA could not page-lock {human(self.bytes)} of host memory for the archive (error {status})",
                    hint="keep the archive on disk with `--archive disk`",
                )
            weakref.finalize(self, _unregister, self._pages)

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``; from a GPU the copy is queued on the current stream."""
        place = self._pages[page, offset : offset + part.numel() * part.element_size()]
        place.view(part.dtype).view(part.shape).copy_(part, non_blocking=True)

    def get(self, page: int) -> Tensor:
        """As ``Pool.get``."""
        return self._pages[page]

    def rest(self) -> None:
        """All of it stays."""


def _unregister(pages: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())


class DiskPool:
    """Pages in a file without a name, in ``folder`` or that for temporary files: it is gone when the process is.

    All of its space is taken when it is made, so that a disk too small is an error then and not hours later. It is
    written through the file, where a full disk is an error, and read through a map, which does not stay resident.
    """

    def __init__(self, pages: int, size: int, *, folder: Path | None = None) -> None:
        self.bytes = pages * size
        self._size = size
        where = folder or Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(dir=where, buffering=0)  # noqa: SIM115 - open as long as the pool
            reserve(self._file.fileno(), self.bytes)
        except OSError as error:
            raise self._full(where, error) from error
        self._where = where
        self._map = mmap.mmap(self._file.fileno(), self.bytes)
        self._pages = torch.frombuffer(self._map, dtype=torch.uint8).view(pages, size)

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``; returns when the system has taken the bytes."""
        content = memoryview(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        try:
            self._file.seek(page * self._size + offset)
            while content:
                written = self._file.write(content)
                content = content[written or 0 :]
        except OSError as error:
            raise self._full(self._where, error) from error

    def get(self, page: int) -> Tensor:
        """As ``Pool.get``."""
        return self._pages[page]

    def rest(self) -> None:
        """Hand the pages that were read back to the system's file cache."""
        if hasattr(self._map, "madvise"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)

    def _full(self, folder: Path, error: OSError) -> LlragError:
        reason = (error.strerror or str(error)).lower()
        return LlragError(
            f"the archive takes {human(self.bytes)} of disk in `{folder}`, which could not be had: {reason}",
            hint="make room, choose a folder on another disk with `--out`, or keep no keys and values with "
            "`--archive recompute`",
        )


def reserve(file: int, size: int) -> None:
    """Take ``size`` bytes of disk for an open file; raises ``OSError`` where there is no room."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros, done = bytes(1 << 20), os.lseek(file, 0, os.SEEK_SET)
    while done < size:
        done += os.write(file, zeros[: size - done])
