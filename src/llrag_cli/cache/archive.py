"""The archive: keys and values of frames that left the window, kept off the compute device.

A page holds the keys and values of one frame of one video in all layers, contiguously, so that retrieving a frame is
one copy. Retrieved pages are copied to a few slots on the device; one that is there already is not copied again. The
tier `device` needs no archive: every frame stays on the pages of the window (``WanKVCache``).

On a GPU, pages are written and read on two streams and by two threads of their own. What one needs of another is told
by events: a block waits for the pages that it retrieves, and for nothing that is being written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.cache.pages import DiskPool, HostPool, LayerKV, Layout, Pool
from llrag_cli.cache.tiers import Tier
from llrag_cli.files.transfer import to_device

Recompute = Callable[[int, int, Tensor, int], Sequence[LayerKV]]  # (row, first frame, latents, prompt) to [T, ...]
ReadPage = Callable[[int, int], LayerKV]  # (layer, frame) to keys and values [B, 1, tokens, heads, D]


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

    def of(self, row: int, frame: int) -> int:
        """The slot of a frame that is in one."""
        return self._held[row][frame]


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

    def write(self, start: int, latents: Tensor, layers: int, page: ReadPage, *, prompt: int = 0) -> None:
        """Add a block, or replace old frames: latents [B, T, C, H, W] from ``start`` on, keys and values by ``page``.

        What ``page`` returns may not be overwritten before ``settle``. ``prompt`` is the number of the prompt that they
        were computed under.
        """
        if self._slots is not None:
            self._slots.discard(range(start, start + latents.shape[1]))
        if self._pages is None:
            keys, _ = page(0, start)
            self._dtype = keys.dtype
            self._layout = Layout.of((*keys.shape[2:],), keys.dtype, eight_bit=self._eight_bit)
            shape = (len(keys), self._slot_count, layers, self._layout.bytes)
            self._pages = torch.empty(shape, dtype=torch.uint8, device=keys.device)
            self._slots = Slots(len(keys), self._slot_count)

    def settle(self, before: int | None = None) -> None:  # noqa: B027 - a tier may have nothing to do
        """From now on, pages of frames ``before`` one (None: all) that were passed to ``write`` may be overwritten."""

    def release(self) -> None:  # noqa: B027
        """What the slots hold has been read by all that was queued so far, and may be replaced after that."""

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:  # noqa: B027 - a tier may have nothing to do
        """Start to copy frames [B][K] that will be fetched soon, where that can overlap with other work."""

    @abstractmethod
    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """Make sure that the pages of frames [B][K] are on the device."""

    def read(self, layer: int, kind: int, row: int, frames: Sequence[int]) -> list[Tensor]:
        """Keys (``kind`` 0) or values (1) [1, n, tokens, heads, D] of fetched frames of one video, in one layer.

        They are in one tensor or several, in order.
        """
        assert self._pages is not None and self._slots is not None
        slots = [self._slots.of(row, frame) for frame in frames]
        return self._layout.unpack(self._pages[row : row + 1, :, layer], kind, self._dtype, slots)

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


@dataclass
class Traffic:
    """A stream of a GPU, and the thread that fills it."""

    stream: torch.cuda.Stream
    thread: ThreadPoolExecutor

    @classmethod
    def of(cls, device: torch.device, name: str) -> Traffic:
        """New ones, on a device."""
        return cls(torch.cuda.Stream(device), ThreadPoolExecutor(max_workers=1, thread_name_prefix=name))

    def run(self, work: Callable[[], None], after: torch.cuda.Event | None) -> Future[torch.cuda.Event]:
        """Queue work on the stream behind an event; the result is an event that follows it."""

        @torch.no_grad()
        def follow() -> torch.cuda.Event:
            with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
                if after is not None:
                    self.stream.wait_event(after)
                work()
                return self.stream.record_event()

        return self.thread.submit(follow)

    def close(self) -> None:
        """Leave out what has not begun, and wait for the rest."""
        self.thread.shutdown(cancel_futures=True)
        self.stream.synchronize()


class Writing:
    """Writes to a pool: at once on a CPU, for a GPU on a stream and a thread of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._traffic = Traffic.of(device, "archive-write") if device.type == "cuda" else None
        self._jobs: list[tuple[range, Future[torch.cuda.Event]]] = []  # frames that are being written

    def run(self, frames: range, work: Callable[[], None]) -> None:
        """Write frames, from tensors as they are now."""
        if self._traffic is None:
            work()
            return
        self._jobs = [(block, job) for block, job in self._jobs if not (job.done() and job.result().query())]
        ready = torch.cuda.current_stream(self._device).record_event()
        self._jobs.append((frames, self._traffic.run(work, ready)))

    def of(self, frames: set[int]) -> list[Future[torch.cuda.Event]]:
        """The writes of some frames that may not be finished."""
        return [job for block, job in self._jobs if not frames.isdisjoint(block)]

    def settle(self, before: int | None) -> None:
        """As ``Archive.settle``."""
        for block, job in self._jobs:
            if before is None or block.start < before:
                event = job.result()
                if not event.query():
                    torch.cuda.current_stream(self._device).wait_event(event)

    def close(self) -> None:
        """Leave out what has not begun, and wait for the rest."""
        if self._traffic is not None:
            self._traffic.close()
        self._jobs = []


class StoredArchive(Archive):
    """Keys and values themselves, in a pool made by ``make_pool(pages, bytes of a page, device)``."""

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
        self._writing: Writing | None = None
        self._reading: Traffic | None = None  # from the pool; None on a CPU, where all is done at once
        self._released: torch.cuda.Event | None = None  # the slots were last read
        self._arrived: Future[torch.cuda.Event] | None = None  # the last pages that were asked for

    def write(self, start: int, latents: Tensor, layers: int, page: ReadPage, *, prompt: int = 0) -> None:
        """As ``Archive.write``."""
        super().write(start, latents, layers, page)
        batch, device = len(latents), latents.device
        frames = range(start, start + latents.shape[1])
        if self._pool is None:
            self._pool = self._make_pool(self.frames * batch, layers * self._layout.bytes, device)
            self._writing = Writing(device)
            if device.type == "cuda":
                self._reading = Traffic.of(device, "archive-read")
        sources = [(frame, layer, page(layer, frame)) for layer in range(layers) for frame in frames]
        pool, layout = self._pool, self._layout

        def work() -> None:
            for frame, layer, source in sources:
                for part, begin in zip(layout.pack(*source), (0, *layout.ends), strict=False):
                    for row in range(batch):
                        number = (frame - self.first) * batch + row
                        pool.put(number, layer * layout.bytes + begin, part[row, 0])
            pool.flush()

        assert self._writing is not None
        self._writing.run(frames, work)

    def settle(self, before: int | None = None) -> None:
        """As ``Archive.settle``."""
        if self._writing is not None:
            self._writing.settle(before)

    def release(self) -> None:
        """As ``Archive.release``."""
        if self._reading is not None:
            self._released = torch.cuda.current_stream(self._device).record_event()

    def prefetch(self, retrieved: Sequence[Sequence[int]]) -> None:
        """As ``Archive.prefetch``."""
        if self._pool is None or self._writing is None or self._pages is None or self._slots is None:
            return
        missing = self._slots.claim(retrieved)
        if not missing:
            return
        self.moved += len(missing)
        pool, pages, rows = self._pool, self._pages, len(self._pages)
        unfinished = self._writing.of({frame for _, frame, _ in missing})
        traffic = self._reading

        def work() -> None:
            for job in unfinished:
                event = job.result()
                if traffic is not None and not event.query():
                    traffic.stream.wait_event(event)
            for row, frame, slot in missing:
                pool.get((frame - self.first) * rows + row, pages[row, slot].view(-1))
            pool.rest()

        if traffic is None:
            work()
        else:
            self._arrived = traffic.run(work, self._released)

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        self.prefetch(retrieved)
        if self._arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived.result())
            self._arrived = None

    def close(self) -> None:
        """As ``Archive.close``."""
        for traffic in (self._reading, self._writing):  # copies from and to the pool may be in flight
            if traffic is not None:
                traffic.close()
        self._reading = self._writing = self._arrived = self._released = None
        super().close()
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    @property
    def pool_bytes(self) -> int:
        """As ``Archive.pool_bytes``."""
        return 0 if self._pool is None else self._pool.bytes

    @property
    def _device(self) -> torch.device:
        assert self._pages is not None
        return self._pages.device


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
        self._writing: Writing | None = None
        self._blocks: dict[int, range] = {}  # the block that each frame was first written with
        self._prompts: dict[int, int] = {}  # the number of the prompt that each frame was last written under

    def write(self, start: int, latents: Tensor, layers: int, page: ReadPage, *, prompt: int = 0) -> None:
        """As ``Archive.write``."""
        super().write(start, latents, layers, page)
        if self._pool is None:
            self._shape, self._latent_dtype = latents.shape[2:], latents.dtype
            size = latents[0, 0].numel() * latents.element_size()
            self._pool = DiskPool(self.frames * len(latents), size, folder=self._folder)
            self._writing = Writing(latents.device)
        assert self._writing is not None
        block, pool = range(start, start + latents.shape[1]), self._pool
        for frame in block:
            self._blocks.setdefault(frame, block)
            self._prompts[frame] = prompt

        def work() -> None:
            for frame in block:
                for row in range(len(latents)):
                    pool.put((frame - self.first) * len(latents) + row, 0, latents[row, frame - start])
            pool.flush()

        self._writing.run(block, work)

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """As ``Archive.fetch``."""
        assert self._pool is not None and self._writing is not None
        assert self._pages is not None and self._slots is not None
        missing = self._slots.claim(retrieved)
        blocks = {frame for _, frame, _ in missing for frame in self._blocks[frame]}
        for job in self._writing.of(blocks):
            job.result()  # then they are in the file
        passes: dict[tuple[int, range, int], list[tuple[int, int]]] = {}  # frames of a block and a prompt share one
        for row, frame, slot in missing:
            block = self._blocks[frame]
            passes.setdefault((row, block, self._prompts[frame]), []).append((frame - block.start, slot))
        for (row, block, prompt), wanted in passes.items():
            self._fill(row, wanted, recompute(row, block.start, self._latents(row, block), prompt))
        self._pool.rest()
        self.moved += len(missing)

    def _fill(self, row: int, wanted: Sequence[tuple[int, int]], recomputed: Sequence[LayerKV]) -> None:
        """Copy frames of a block, by their offsets, to slots; no block is held while the next one is computed."""
        assert self._pages is not None
        for layer, fresh in enumerate(recomputed):
            for offset, slot in wanted:
                for part, page in zip(fresh, self._layout.parts(self._pages[row, slot, layer]), strict=True):
                    page.copy_(part[offset])

    def _latents(self, row: int, block: range) -> Tensor:
        """Latents [1, T, C, H, W] of a block."""
        assert self._pool is not None and self._pages is not None
        pages = [(frame - self.first) * len(self._pages) + row for frame in block]
        frames = torch.stack([self._pool.page(page) for page in pages])
        return to_device(frames.view(self._latent_dtype).view(1, len(block), *self._shape), self._pages.device)

    def close(self) -> None:
        """As ``Archive.close``."""
        if self._writing is not None:
            self._writing.close()
        self._writing = None
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
