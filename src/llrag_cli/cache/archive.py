"""The archive: keys and values of frames that left the window, kept off the compute device.

A page holds the keys and values of one frame of one video in all layers, contiguously, so that retrieving a frame is
one copy. Retrieved pages are copied to a few slots on the device; one that is there already is not copied again. The
tier `device` needs no archive: every frame stays on the pages of the window (``WanKVCache``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.cache.pages import DiskPool, HostPool, LayerKV, Layout, Pool
from llrag_cli.cache.tiers import Tier

Recompute = Callable[[int, int, Tensor, int], Sequence[LayerKV]]  # (row, first frame, latents, prompt) to [T, ...]


class Slots:
    """Which frames of each video are in which of ``count`` slots; the least recently retrieved is replaced."""

    def __init__(self, rows: int, count: int) -> None:
        self.count = count
        self._held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(rows)]  # frame to slot, oldest first
        self._free = [list(reversed(range(count))) for _ in range(rows)]

    def claim(self, retrieved: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
        """Assign slots to frames [B][<= count]; returns (row, frame, slot) of those that were in none."""
        missing = []
        for row, (frames, held, free) in enumerate(zip(retrieved, self._held, self._free, strict=True)):
            for frame in frames:
                if frame in held:
                    held.move_to_end(frame)
            for frame in frames:
                if frame not in held:
                    held[frame] = free.pop() if free else held.popitem(last=False)[1]
                    missing.append((row, frame, held[frame]))
        return missing

    def discard(self, frames: range) -> None:
        """Empty the slots of frames whose pages have changed."""
        for held, free in zip(self._held, self._free, strict=True):
            free += [held.pop(frame) for frame in frames if frame in held]

    def of(self, retrieved: Sequence[Sequence[int]]) -> Tensor:
        """Slots [B, K] of frames that are in one."""
        return torch.tensor([[held[frame] for frame in row] for row, held in zip(retrieved, self._held, strict=True)])


class Archive(ABC):
    """Frames that can be retrieved; a subclass defines what is kept of a frame and how its page is restored.

    Its layers are those that are written, which may be the last ones of the backbone.

    ``slots`` pages of each video are on the device. ``recomputes`` is whether pages are computed again instead of
    being stored. Storage for ``frames`` from frame ``first`` on is allocated at the first write.
    """

    recomputes = False

    def __init__(self, *, slots: int, frames: int, first: int = 0, eight_bit: bool = False) -> None:
        self.frames = frames
        self.first = first
        self.moved = 0  # pages copied to the device so far
        self._slot_count = slots
        self._eight_bit = eight_bit
        self._slots: Slots | None = None
        self._pages: Tensor | None = None  # [B, slots, layers, bytes], uint8, on the device

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV], *, prompt: int = 0) -> None:
        """Add a block, or replace old frames: latents [B, T, C, H, W] from ``start`` on, keys and values by layer.

        ``prompt`` is the number of the prompt that they were computed under.
        """
        if self._slots is not None:
            self._slots.discard(range(start, start + latents.shape[1]))
        if self._pages is None:
            keys = fresh[0][0]
            self._dtype = keys.dtype
            self._layout = Layout.of((*keys.shape[2:],), keys.dtype, eight_bit=self._eight_bit)
            shape = (len(keys), self._slot_count, len(fresh), self._layout.bytes)
            self._pages = torch.empty(shape, dtype=torch.uint8, device=keys.device)
            self._slots = Slots(len(keys), self._slot_count)

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:  # noqa: B027 - a tier may have nothing to do
        """Start to copy frames [B][K] that will be fetched soon, where that can overlap with other work."""

    @abstractmethod
    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """Make sure that the pages of frames [B][K] are on the device."""

    def read(self, layer: int, retrieved: Sequence[Sequence[int]]) -> LayerKV:
        """Keys and values [B, K, tokens, heads, D] of one layer, of fetched frames."""
        assert self._pages is not None and self._slots is not None
        slots = self._slots.of(retrieved).to(self._pages.device)
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        return self._layout.unpack(self._pages[:, :, layer][rows, slots], self._dtype)

    def close(self) -> None:
        """Free what is held."""
        self._pages = self._slots = None

    @property
    def device_bytes(self) -> int:
        """Memory of the slots."""
        return 0 if self._pages is None else self._pages.numel()

    @property
    @abstractmethod
    def pool_bytes(self) -> int:
        """Size of the storage off the device."""


class StoredArchive(Archive):
    """Keys and values themselves, in a pool made by ``make_pool(pages, bytes of a page, device)``.

    On a GPU pages are copied on a separate stream, beside the clean pass.
    """

    def __init__(
        self,
        make_pool: Callable[[int, int, torch.device], Pool],
        *,
        slots: int,
        frames: int,
        first: int = 0,
        eight_bit: bool = False,
    ) -> None:
        super().__init__(slots=slots, frames=frames, first=first, eight_bit=eight_bit)
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._stream: torch.cuda.Stream | None = None
        self._used: torch.cuda.Event | None = None  # the slots were last read

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV], *, prompt: int = 0) -> None:
        """As ``Archive.write``."""
        super().write(start, latents, fresh)
        batch, block = latents.shape[:2]
        if self._pool is None:
            size = len(fresh) * self._layout.bytes
            self._pool = self._make_pool(self.frames * batch, size, latents.device)
            if latents.device.type == "cuda":
                self._stream = torch.cuda.Stream(latents.device)
        packed = [self._layout.pack(*each) for each in fresh]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(self._stream):
            for layer, parts in enumerate(packed):
                for part, end in zip(parts, (0, *self._layout.ends), strict=False):
                    for frame in range(block):
                        for row in range(batch):
                            page = (start + frame - self.first) * batch + row
                            self._pool.put(page, layer * self._layout.bytes + end, part[row, frame])
                    if self._stream is not None:
                        part.record_stream(self._stream)
        self._pool.flush()

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:
        """As ``Archive.prefetch``."""
        if self._pool is None or self._pages is None or self._slots is None:
            return
        if self._stream is not None and self._used is not None:
            self._stream.wait_event(self._used)
        with torch.cuda.stream(self._stream):
            for row, frame, slot in self._slots.claim(retrieved):
                page = self._pool.get((frame - self.first) * len(self._pages) + row)
                self._pages[row, slot].view(-1).copy_(page, non_blocking=True)
                self.moved += 1
        self._pool.flush()

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        self.prefetch(retrieved)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def read(self, layer: int, retrieved: Sequence[Sequence[int]]) -> LayerKV:
        """As ``Archive.read``."""
        found = super().read(layer, retrieved)
        if self._stream is not None:
            self._used = torch.cuda.current_stream(self._stream.device).record_event()
        return found

    def close(self) -> None:
        """As ``Archive.close``."""
        super().close()
        if self._stream is not None:
            self._stream.synchronize()  # copies from and to the pool may be in flight
        self._pool = None

    @property
    def pool_bytes(self) -> int:
        """As ``Archive.pool_bytes``."""
        return 0 if self._pool is None else self._pool.bytes


class RecomputedArchive(Archive):
    """Latents only, on disk: keys and values of a retrieved frame are computed by another clean pass over its block.

    The pass is under the prompt of the frame's last write. It attends to the sink and the block, not to what the block
    attended to when it was generated, so the result is approximate. Unless the commit rule is `full` it attends to the
    block alone, which with the rule `self` is what the block attended to. A page depends on the video alone, not on
    the content of the slots.
    """

    recomputes = True

    def __init__(self, *, slots: int, frames: int, first: int = 0, folder: Path | None = None) -> None:
        super().__init__(slots=slots, frames=frames, first=first)
        self._folder = folder
        self._pool: DiskPool | None = None
        self._blocks: dict[int, range] = {}  # the block that each frame was first written with
        self._prompts: dict[int, int] = {}  # the number of the prompt that each frame was last written under

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV], *, prompt: int = 0) -> None:
        """As ``Archive.write``."""
        super().write(start, latents, fresh)
        if self._pool is None:
            self._shape, self._latent_dtype = latents.shape[2:], latents.dtype
            size = latents[0, 0].numel() * latents.element_size()
            self._pool = DiskPool(self.frames * len(latents), size, folder=self._folder)
        block = range(start, start + latents.shape[1])
        for frame in block:
            self._blocks.setdefault(frame, block)
            self._prompts[frame] = prompt
            for row in range(len(latents)):
                self._pool.put((frame - self.first) * len(latents) + row, 0, latents[row, frame - start])

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        assert self._pool is not None and self._pages is not None and self._slots is not None
        missing = self._slots.claim(retrieved)
        passes: dict[tuple[int, range, int], list[tuple[int, int]]] = {}  # frames of a block and a prompt share one
        for row, frame, slot in missing:
            block = self._blocks[frame]
            passes.setdefault((row, block, self._prompts[frame]), []).append((frame - block.start, slot))
        for (row, block, prompt), wanted in passes.items():
            recomputed = recompute(row, block.start, self._latents(row, block), prompt)
            for layer, fresh in enumerate(recomputed):
                for offset, slot in wanted:
                    for part, page in zip(fresh, self._layout.parts(self._pages[row, slot, layer]), strict=True):
                        page.copy_(part[offset])
        self._pool.flush()
        self.moved += len(missing)

    def _latents(self, row: int, block: range) -> Tensor:
        """Latents [1, T, C, H, W] of a block."""
        assert self._pool is not None and self._pages is not None
        pages = [(frame - self.first) * len(self._pages) + row for frame in block]
        frames = torch.stack([self._pool.get(page) for page in pages])
        return frames.view(self._latent_dtype).view(1, len(block), *self._shape).to(self._pages.device)

    def close(self) -> None:
        """As ``Archive.close``."""
        super().close()
        self._pool = None

    @property
    def pool_bytes(self) -> int:
        """As ``Archive.pool_bytes``."""
        return 0 if self._pool is None else self._pool.bytes


def slots_of(tier: Tier, retrieved: int) -> int:
    """Pages of each video on the device: as many as a block retrieves, or twice that if each costs a pass."""
    return 2 * retrieved if tier == "recompute" else retrieved


def new_archive(
    tier: Tier, *, retrieved: int, frames: int, first: int = 0, folder: Path | None = None
) -> Archive | None:
    """The archive of a tier for ``frames`` from frame ``first`` on; None for `device`. Its file is in ``folder``."""
    slots = slots_of(tier, retrieved)
    if tier == "device":
        return None
    if tier == "recompute":
        return RecomputedArchive(slots=slots, frames=frames, first=first, folder=folder)
    if tier == "disk":
        return StoredArchive(
            lambda pages, size, device: DiskPool(pages, size, folder=folder), slots=slots, frames=frames, first=first
        )
    return StoredArchive(
        lambda pages, size, device: HostPool(pages, size, device=device),
        slots=slots,
        frames=frames,
        first=first,
        eight_bit=tier == "host-int8",
    )
