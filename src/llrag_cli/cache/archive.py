"""The archive: keys and values of frames that left the window, on a cheaper place than the compute device.

A page is all a frame of one video left in all layers, in one piece, so that recalling a frame is one copy. Recalled
pages come to a few slots on the device; one that lies there already is not moved again. The tier `device` is no
archive: there every frame stays on the pages of the window (``WanKVCache``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.cache.pages import DiskPool, HostPool, LayerKV, Layout, Pool
from llrag_cli.config import Tier

Recompute = Callable[[int, int, Tensor], Sequence[LayerKV]]  # (row, first frame, a block's latents) to [T, ...]


class Slots:
    """Which frames of each video lie in which of ``count`` slots; the least recently recalled makes room."""

    def __init__(self, rows: int, count: int) -> None:
        self.count = count
        self._held: list[OrderedDict[int, int]] = [OrderedDict() for _ in range(rows)]  # frame to slot, oldest first

    def claim(self, recalled: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
        """(row, frame, slot) of frames [B][<= count] that are not there yet; from now on they are."""
        missing = []
        for row, (frames, held) in enumerate(zip(recalled, self._held, strict=True)):
            for frame in frames:
                if frame in held:
                    held.move_to_end(frame)
            for frame in frames:
                if frame not in held:
                    held[frame] = len(held) if len(held) < self.count else held.popitem(last=False)[1]
                    missing.append((row, frame, held[frame]))
        return missing

    def places(self, recalled: Sequence[Sequence[int]]) -> Tensor:
        """Slots [B, K] of frames that are there."""
        return torch.tensor([[held[frame] for frame in row] for row, held in zip(recalled, self._held, strict=True)])


class Archive(ABC):
    """Frames that can be recalled, by tier; a subclass says what is kept of a frame and how its page comes back.

    ``slots`` pages of each video lie on the device. Room for ``frames`` is made at the first write.
    """

    def __init__(self, *, slots: int, frames: int, eight_bit: bool = False) -> None:
        self.frames = frames
        self.moved = 0  # pages that were brought to the device so far
        self._slot_count = slots
        self._eight_bit = eight_bit
        self._slots: Slots | None = None
        self._pages: Tensor | None = None  # [B, slots, layers, bytes], uint8, on the device

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV]) -> None:
        """Take in a block: latents [B, T, C, H, W] of frames from ``start`` on, and what they left in each layer."""
        if self._pages is None:
            keys = fresh[0][0]
            self._dtype = keys.dtype
            self._layout = Layout.of((*keys.shape[2:],), keys.dtype, eight_bit=self._eight_bit)
            shape = (len(keys), self._slot_count, len(fresh), self._layout.bytes)
            self._pages = torch.empty(shape, dtype=torch.uint8, device=keys.device)
            self._slots = Slots(len(keys), self._slot_count)

    def expect(self, recalled: Sequence[Sequence[int]]) -> None:  # noqa: B027 - most have nothing to do
        """Frames [B][K] will be fetched soon: bring them already, where that can be done beside other work."""

    @abstractmethod
    def fetch(self, recalled: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """Have the pages of frames [B][K] on the device."""

    def read(self, layer: int, recalled: Sequence[Sequence[int]]) -> LayerKV:
        """Keys and values [B, K, tokens, heads, D] of one layer, of frames that were fetched."""
        assert self._pages is not None and self._slots is not None
        places = self._slots.places(recalled).to(self._pages.device)
        rows = torch.arange(len(places), device=places.device)[:, None]
        return self._layout.unpack(self._pages[:, :, layer][rows, places], self._dtype)

    @property
    def device_bytes(self) -> int:
        """Held in slots."""
        return 0 if self._pages is None else self._pages.numel()

    @property
    @abstractmethod
    def pool_bytes(self) -> int:
        """Held where frames rest."""


class StoredArchive(Archive):
    """Keys and values themselves, in a pool that ``make_pool(pages, bytes of a page, device)`` makes.

    On a GPU pages travel on a stream of their own, beside the clean pass.
    """

    def __init__(
        self,
        make_pool: Callable[[int, int, torch.device], Pool],
        *,
        slots: int,
        frames: int,
        eight_bit: bool = False,
    ) -> None:
        super().__init__(slots=slots, frames=frames, eight_bit=eight_bit)
        self._make_pool = make_pool
        self._pool: Pool | None = None
        self._stream: torch.cuda.Stream | None = None
        self._used: torch.cuda.Event | None = None  # the slots were last read

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV]) -> None:
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
                            page = (start + frame) * batch + row
                            self._pool.put(page, layer * self._layout.bytes + end, part[row, frame])
                    if self._stream is not None:
                        part.record_stream(self._stream)
        self._pool.rest()

    def expect(self, recalled: Sequence[Sequence[int]]) -> None:
        """As ``Archive.expect``."""
        if self._pool is None or self._pages is None or self._slots is None:
            return
        if self._stream is not None and self._used is not None:
            self._stream.wait_event(self._used)
        with torch.cuda.stream(self._stream):
            for row, frame, slot in self._slots.claim(recalled):
                page = self._pool.get(frame * len(self._pages) + row)
                self._pages[row, slot].view(-1).copy_(page, non_blocking=True)
                self.moved += 1
        self._pool.rest()

    def fetch(self, recalled: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        self.expect(recalled)
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def read(self, layer: int, recalled: Sequence[Sequence[int]]) -> LayerKV:
        """As ``Archive.read``."""
        found = super().read(layer, recalled)
        if self._stream is not None:
            self._used = torch.cuda.current_stream(self._stream.device).record_event()
        return found

    @property
    def pool_bytes(self) -> int:
        """As ``Archive.pool_bytes``."""
        return 0 if self._pool is None else self._pool.bytes


class RecomputedArchive(Archive):
    """Latents only, on disk: keys and values of a recalled frame come from one more clean pass over its block.

    The pass sees the sink and the block, not what the block saw when it was made, so the numerics are not those of
    the other tiers. A page depends on the video alone, not on what lies in the slots.
    """

    def __init__(self, *, slots: int, frames: int, folder: Path | None = None) -> None:
        super().__init__(slots=slots, frames=frames)
        self._folder = folder
        self._pool: DiskPool | None = None

    def write(self, start: int, latents: Tensor, fresh: Sequence[LayerKV]) -> None:
        """As ``Archive.write``."""
        super().write(start, latents, fresh)
        if self._pool is None:
            self._shape, self._latent_dtype = latents.shape[1:], latents.dtype
            size = latents[0, 0].numel() * latents.element_size()
            self._pool = DiskPool(self.frames * len(latents), size, folder=self._folder)
        for frame in range(latents.shape[1]):
            for row in range(len(latents)):
                self._pool.put((start + frame) * len(latents) + row, 0, latents[row, frame])

    def fetch(self, recalled: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        assert self._pool is not None and self._pages is not None and self._slots is not None
        missing = self._slots.claim(recalled)
        blocks: dict[tuple[int, int], list[tuple[int, int]]] = {}  # frames of one block share its pass
        for row, frame, slot in missing:
            place = frame % self._shape[0]
            blocks.setdefault((row, frame - place), []).append((place, slot))
        for (row, start), wanted in blocks.items():
            made = recompute(row, start, self._block(row, start))
            for layer, fresh in enumerate(made):
                for place, slot in wanted:
                    for part, page in zip(fresh, self._layout.parts(self._pages[row, slot, layer]), strict=True):
                        page.copy_(part[place])
        self._pool.rest()
        self.moved += len(missing)

    def _block(self, row: int, start: int) -> Tensor:
        """Latents [1, T, C, H, W] of the block at a frame."""
        assert self._pool is not None and self._pages is not None
        numbers = [(start + place) * len(self._pages) + row for place in range(self._shape[0])]
        frames = torch.stack([self._pool.get(number) for number in numbers])
        return frames.view(self._latent_dtype).view(1, *self._shape).to(self._pages.device)

    @property
    def pool_bytes(self) -> int:
        """As ``Archive.pool_bytes``."""
        return 0 if self._pool is None else self._pool.bytes


def slots_of(tier: Tier, retrieved: int) -> int:
    """Pages of each video on the device: those a block recalls; twice as many where a page costs a pass."""
    return 2 * retrieved if tier == "recompute" else retrieved


def new_archive(tier: Tier, *, retrieved: int, frames: int, folder: Path | None = None) -> Archive | None:
    """The archive of a tier for ``frames`` in all; None for `device`. Its file goes to ``folder``, if it has one."""
    slots = slots_of(tier, retrieved)
    if tier == "device":
        return None
    if tier == "recompute":
        return RecomputedArchive(slots=slots, frames=frames, folder=folder)
    if tier == "disk":
        return StoredArchive(
            lambda pages, size, device: DiskPool(pages, size, folder=folder), slots=slots, frames=frames
        )
    return StoredArchive(
        lambda pages, size, device: HostPool(pages, size, device=device),
        slots=slots,
        frames=frames,
        eight_bit=tier == "host-int8",
    )
