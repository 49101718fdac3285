"""Pages of the archive, their layout, and their storage in host memory and on disk."""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llrag_cli.errors import ArchiveError, LlragError, LlragWarning
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
        return [self._part(pages, number) for number in range(len(self.shapes))]

    def _part(self, pages: Tensor, number: int) -> Tensor:
        shape, dtype, start = self.shapes[number], self.dtypes[number], [0, *self.ends][number]
        size = torch.Size(shape).numel() * dtype.itemsize
        return pages[..., start : start + size].view(dtype).unflatten(-1, shape)

    def pack(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """The parts [..., *shape] of keys and values [..., tokens, heads, D].

        In eight bits, keys have a scale for each channel (a few channels of keys are much larger than the rest) and
        values one for each token and head, as KIVI (arXiv 2402.02750) found best.
        """
        if not self.eight_bit:
            return keys, values
        by_channel, by_token = _scale(keys, dim=-3), _scale(values, dim=-1)
        return by_channel, by_token, _eight_bit(keys, by_channel), _eight_bit(values, by_token)

    def unpack(self, pages: Tensor, kind: int, dtype: torch.dtype, chosen: Sequence[int]) -> list[Tensor]:
        """Keys (``kind`` 0) or values (1) [b, 1 or n, tokens, heads, D] of ``chosen`` of pages [b, pages, bytes].

        They are views of one page each; in eight bits one tensor of all.
        """
        if not self.eight_bit:
            stored = self._part(pages, kind)
            return [stored[:, page : page + 1] for page in chosen]  # slices need no index
        scales, rounded = (
            torch.cat([part[:, page : page + 1] for page in chosen], dim=1)
            for part in (self._part(pages, kind), self._part(pages, 2 + kind))
        )
        return [(rounded * scales).to(dtype)]


def _scale(x: Tensor, *, dim: int) -> Tensor:
    """The size of one of 127 steps: float32, never 0."""
    return x.float().abs().amax(dim=dim, keepdim=True).clamp_min(1e-12) / 127


def _eight_bit(x: Tensor, scale: Tensor) -> Tensor:
    return (x.float() / scale).round().to(torch.int8)


class Pool(Protocol):
    """Storage for the pages of all frames, allocated at once: page n is row n of [pages, bytes], uint8.

    One thread may write while another one reads pages that are complete. Copies from and to a GPU are queued on the
    current stream.
    """

    bytes: int

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """Write a contiguous part of a page from its byte ``offset`` on."""
        ...

    def flush(self) -> None:
        """Called once a block is written: finish what passes through the thread that writes."""
        ...

    def get(self, page: int, target: Tensor) -> None:
        """Copy a page to a target [bytes], uint8."""
        ...

    def rest(self) -> None:
        """Called once the pages that a block retrieves are copied: release memory that is not needed."""
        ...

    def close(self) -> None:
        """Free the storage; nothing may be in flight."""
        ...


STAGING = 16 * 2**20  # bytes of one buffer
OS_PAGE = 4096
PIECE = 2**30  # bytes of host memory that are page-locked at once


class Staging:
    """Page-locked buffers that copies pass through where memory cannot be page-locked itself.

    A buffer is used again once its copy is over, so the thread that calls this one waits for the GPU; the one that
    generates does not.
    """

    def __init__(self, count: int = 4) -> None:
        self._buffers = [torch.empty(STAGING, dtype=torch.uint8, pin_memory=True) for _ in range(count)]
        self._pending: list[tuple[torch.cuda.Event, Callable[[], None]] | None] = [None] * count
        self._next = 0

    def to_host(self, part: Tensor, write: Callable[[int, Tensor], None]) -> None:
        """Hand a contiguous part on a GPU to ``write``, as offsets and bytes [n], in order; ``drain`` finishes it."""
        offset = 0
        for chunk in part.flatten().view(torch.uint8).split(STAGING):
            number, buffer = self._free(len(chunk))
            buffer.copy_(chunk, non_blocking=True)

            def deliver(offset: int = offset, buffer: Tensor = buffer) -> None:
                write(offset, buffer)

            self._pending[number] = torch.cuda.current_stream(part.device).record_event(), deliver
            offset += len(chunk)

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy bytes [n] of the host to a target [n] on a GPU."""
        for chunk, there in zip(source.split(STAGING), target.split(STAGING), strict=True):
            number, buffer = self._free(len(chunk))
            buffer.copy_(chunk)
            there.copy_(buffer, non_blocking=True)
            self._pending[number] = torch.cuda.current_stream(target.device).record_event(), lambda: None

    def drain(self) -> None:
        """Finish all copies."""
        for _ in self._buffers:
            self._free(0)

    def _free(self, size: int) -> tuple[int, Tensor]:
        """The next buffer, once its last copy is over, cut to a size."""
        number, self._next = self._next, (self._next + 1) % len(self._buffers)
        pending, self._pending[number] = self._pending[number], None
        if pending is not None:
            event, deliver = pending
            event.synchronize()
            deliver()
        return number, self._buffers[number][:size]


class HostPool:
    """Pages in one allocation of host memory.

    Where a GPU copies from it, it is page-locked piece by piece, as the video grows, by the thread that writes: locking
    35 GB takes about 12 s. If CUDA refuses, what is not locked is copied through page-locked buffers.
    """

    def __init__(self, pages: int, size: int, *, device: torch.device) -> None:
        self._size, self._gpu = size, device.type == "cuda"
        stride = -(-size // OS_PAGE) * OS_PAGE if self._gpu else size  # pieces of whole pages are locked
        self.bytes = pages * stride
        memory = torch.empty(self.bytes + (OS_PAGE if self._gpu else 0), dtype=torch.uint8)
        first = -memory.data_ptr() % OS_PAGE if self._gpu else 0
        self._pages = memory[first : first + self.bytes].view(pages, stride)
        self._pages_a_piece = max(1, PIECE // max(1, stride))
        self._locked = 0  # pages from the first on
        self._refused = False
        self._last = 0  # the last page that was written
        self._out: Staging | None = None
        self._in: Staging | None = None
        self._registered: list[int] = []  # addresses of pieces
        self._unlock = weakref.finalize(self, _unregister, self._registered)

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``."""
        target = self._pages[page, offset : offset + part.numel() * part.element_size()]
        if not self._gpu or self._lock(page):
            target.view(part.dtype).view(part.shape).copy_(part, non_blocking=True)
            self._last = max(self._last, page)
            return
        self._out = self._out or Staging()

        def write(start: int, chunk: Tensor) -> None:
            target[start : start + len(chunk)] = chunk

        self._out.to_host(part, write)

    def flush(self) -> None:
        """As ``Pool.flush``; the next piece is page-locked before it is needed."""
        if self._out is not None:
            self._out.drain()
        if self._gpu and self._last < len(self._pages):
            self._lock(min(self._last + self._pages_a_piece, len(self._pages) - 1))

    def get(self, page: int, target: Tensor) -> None:
        """As ``Pool.get``."""
        source = self._pages[page, : self._size]
        if self._gpu and page >= self._locked:
            self._in = self._in or Staging()
            self._in.to_device(source, target)
        else:
            target.copy_(source, non_blocking=True)

    def rest(self) -> None:
        """As ``Pool.rest``; everything stays."""

    def close(self) -> None:
        """As ``Pool.close``."""
        self._unlock()

    def _lock(self, page: int) -> bool:
        """Page-lock the pieces up to a page; returns whether it is locked."""
        while self._locked <= page and not self._refused:
            piece = self._pages[self._locked : self._locked + self._pages_a_piece]
            status = int(torch.cuda.cudart().cudaHostRegister(piece.data_ptr(), piece.numel(), 0))
            if status != 0:
                self._refused = True
                warnings.warn(
                    f"CUDA page-locks only {human(self._locked * self._pages.shape[1])} of {human(self.bytes)} of host "
                    f"memory for the archive (error {status}); the rest is copied through buffers, which is slower",
                    LlragWarning,
                    stacklevel=2,
                )
                break
            self._registered.append(piece.data_ptr())
            self._locked += len(piece)
        return page < self._locked


def _unregister(addresses: list[int]) -> None:
    while addresses:
        torch.cuda.cudart().cudaHostUnregister(addresses.pop())


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
        self._out: Staging | None = None
        self._in: Staging | None = None

    def put(self, page: int, offset: int, part: Tensor) -> None:
        """As ``Pool.put``; returns when the bytes of the CPU are handed to the system, of a GPU see ``flush``."""
        begin = page * self._size + offset
        if part.is_cuda:
            self._out = self._out or Staging()
            self._out.to_host(part, lambda start, chunk: self._write(begin + start, chunk))
        else:
            self._write(begin, part)

    def _write(self, begin: int, part: Tensor) -> None:
        content = memoryview(part.contiguous().flatten().view(torch.uint8).numpy().data)
        try:
            self._file.seek(begin)
            while content:
                written = self._file.write(content)
                content = content[written or 0 :]
        except OSError as error:
            raise self._full(error) from error

    def flush(self) -> None:
        """As ``Pool.flush``."""
        if self._out is not None:
            self._out.drain()

    def page(self, page: int) -> Tensor:
        """A page [bytes] as it is mapped, to be copied before the next ``rest``."""
        return self._pages[page]

    def get(self, page: int, target: Tensor) -> None:
        """As ``Pool.get``."""
        if target.is_cuda:
            self._in = self._in or Staging()
            self._in.to_device(self._pages[page], target)
        else:
            target.copy_(self._pages[page])

    def rest(self) -> None:
        """As ``Pool.rest``; pages that were read leave resident memory."""
        if hasattr(self._map, "madvise"):  # not on Windows
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """As ``Pool.close``; the system frees the space once nothing refers to it."""
        self._file.close()

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
