"""Keys and values of past latent frames, paged by frame, and the buffer a block attends to.

Keys are stored before rotation and rotated when read, once per block. Nothing is ever shifted: a page belongs to a
frame, a context is a list of frames, and attention does not depend on their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llrag_cli.cache.archive import Archive, Recompute
from llrag_cli.cache.rotary import rotate


class FramePages:
    """Keys and values [B, pages, tokens, heads, D] of the frames of one layer, on the compute device.

    With ``ring`` pages, the frames of the sink are on the first pages, and any other frame f on page
    sink + (f - sink) mod (ring - sink), so old frames are overwritten. Without, every frame has a page of its own.
    Frames of references have the numbers -``references`` .. -1; the last ``pinned`` of them are never overwritten.
    Memory for all ``frames`` of the video and the references, or for the ring, is allocated at the first write.
    """

    def __init__(self, *, sink: int, ring: int | None, frames: int, references: int = 0, pinned: int = 0) -> None:
        self.sink = sink
        self.ring = ring
        self.references, self.pinned = references, pinned
        self.sink_start = 0  # first frame of the sink
        if ring is None:
            self.count = frames + references
        else:
            self.count = (ring if references else min(ring, frames)) + pinned
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def page(self, frames: Tensor) -> Tensor:
        """The pages of frames."""
        if self.ring is None:
            return frames + self.references
        turned = self.sink + (frames - self.sink) % (self.ring - self.sink)
        offset = frames - self.sink_start
        pages = torch.where((offset >= 0) & (offset < self.sink), offset, turned)
        pinned = (frames < 0) & (frames >= -self.pinned)
        return torch.where(pinned, frames + self.count, pages)

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values [B, T, tokens, heads, D] of frames start .. start + T - 1."""
        if self._keys is None or self._values is None:
            shape = (len(keys), self.count, *keys.shape[2:])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        pages = self.page(torch.arange(start, start + keys.shape[1])).to(keys.device)
        self._keys.index_copy_(1, pages, keys)
        self._values.index_copy_(1, pages, values)

    def read(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, tokens, heads, D] of frames [N], the same for all videos, or [B, N]."""
        assert self._keys is not None and self._values is not None
        pages = self.page(frames).to(self._keys.device)
        if frames.ndim == 1:
            return self._keys.index_select(1, pages), self._values.index_select(1, pages)
        rows = torch.arange(len(pages), device=pages.device)[:, None]
        return self._keys[rows, pages], self._values[rows, pages]

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(part.numel() * part.element_size() for part in (self._keys, self._values) if part is not None)


class WanKVLayerCache:
    """The keys and values that one self-attention layer reads: the block's own slots, then its context.

    The buffer is [B, (block + context) * tokens, heads, D]; a block's passes rewrite only its own slots.
    """

    def __init__(self, pages: FramePages) -> None:
        self.pages = pages
        self._buffer: tuple[Tensor, Tensor] | None = None
        self._visible = self._without_retrieved = self._all = [slice(0, 0)]
        self._block = 0
        self.fresh: tuple[Tensor, Tensor] | None = None  # the last pass's own keys (not rotated) and values

    def gather(
        self,
        parts: list[tuple[Tensor, Tensor]],
        tables: list[Tensor],
        *,
        block: int,
        hidden: slice,
        retrieved: int = 0,
    ) -> None:
        """Rotate the context, parts [B, N, tokens, heads, D], into the buffer.

        ``block`` counts the block's tokens; ``hidden`` are those of them that it does not attend to itself. The last
        ``retrieved`` tokens of the context can be left out by ``set_reading``.
        """
        total = block + sum(keys.shape[1] * keys.shape[2] for keys, _ in parts)
        if parts:
            self._reserve(total, parts[0][0])
        begin = block
        for (keys, values), table in zip(parts, tables, strict=True):
            assert self._buffer is not None
            end = begin + keys.shape[1] * keys.shape[2]
            self._buffer[0][:, begin:end] = rotate(keys.flatten(1, 2), table)
            self._buffer[1][:, begin:end] = values.flatten(1, 2)
            begin = end
        self._block = block
        self._all, self._without_retrieved = (_around(hidden, end) for end in (total, total - retrieved))
        self._visible = self._all

    def set_reading(self, *, retrieved: bool) -> None:
        """Whether the next passes attend to retrieved frames; after ``gather`` they do."""
        self._visible = self._all if retrieved else self._without_retrieved

    def store(self, keys: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Write the block's keys (not yet rotated) and values [B, L, heads, D]; returns all that it attends to."""
        self.fresh = keys, values
        self._reserve(max(self._block, self._visible[-1].stop), keys)
        assert self._buffer is not None
        self._buffer[0][:, : self._block] = rotate(keys, table)
        self._buffer[1][:, : self._block] = values
        seen = [[part[:, visible] for visible in self._visible] for part in self._buffer]  # views
        return (seen[0][0], seen[1][0]) if len(self._visible) == 1 else (torch.cat(seen[0], 1), torch.cat(seen[1], 1))

    def commit(self, start: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Store the last pass's keys and values as those of frames from ``start`` on, and return them."""
        assert self.fresh is not None
        keys, values = (part.unflatten(1, (-1, tokens)) for part in self.fresh)
        self.pages.write(start, keys, values)
        self.fresh = None
        return keys, values

    @property
    def bytes(self) -> int:
        """Memory that the buffer holds."""
        return sum(part.numel() * part.element_size() for part in self._buffer or ())

    def _reserve(self, length: int, like: Tensor) -> None:
        if self._buffer is None or self._buffer[0].shape[1] < length:
            shape = (like.shape[0], length, *like.shape[-2:])
            grown = (like.new_empty(shape), like.new_empty(shape))
            if self._buffer is not None:
                for new, old in zip(grown, self._buffer, strict=True):
                    new[:, : old.shape[1]] = old
            self._buffer = grown


def _around(hidden: slice, end: int) -> list[slice]:
    """The parts of the first ``end`` tokens that are not hidden."""
    around = (slice(0, hidden.start), slice(hidden.stop, end)) if hidden.stop > hidden.start else (slice(0, end),)
    return [part for part in around if part.stop > part.start]


class WanKVCache:
    """The caches of all layers of one rollout of ``frames`` frames.

    ``recent`` frames besides the sink stay on the compute device, and the last ``pinned`` of the ``references``;
    ``None`` keeps all frames there. With an ``archive``, frames that left can be read back. Passes that compute an old
    block again attend to ``commit_sink`` frames of the sink, by default to all. The first ``unread`` layers attend to
    no retrieved frames: they have no archive, and keep ``unread_recent`` frames besides the sink (None: all).
    """

    def __init__(
        self,
        *,
        layers: int,
        sink: int,
        recent: int | None,
        frames: int,
        references: int = 0,
        pinned: int = 0,
        archive: Archive | None = None,
        commit_sink: int | None = None,
        unread: int = 0,
        unread_recent: int | None = None,
    ) -> None:
        self.sink = sink
        self.commit_sink = sink if commit_sink is None else commit_sink
        self.window = None if recent is None else sink + recent

        self.unread = unread

        def pages(kept: int | None) -> FramePages:
            ring = None if kept is None else sink + kept
            return FramePages(sink=sink, ring=ring, frames=frames, references=references, pinned=pinned)

        self.layers = [WanKVLayerCache(pages(unread_recent if layer < unread else recent)) for layer in range(layers)]
        self.archive = archive

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """Make sure that the pages of retrieved frames [B][K] are on the device."""
        if self.archive is not None:
            self.archive.fetch(retrieved, recompute)

    def retrieved(self, layer: int, retrieved: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, tokens, heads, D] of fetched frames [B][K], of a layer that reads them."""
        if self.archive is not None:
            return self.archive.read(layer - self.unread, retrieved)
        return self.layers[layer].pages.read(torch.tensor(retrieved))

    def commit(self, start: int, latents: Tensor, tokens: int, *, prompt: int = 0) -> None:
        """Store the last pass's keys and values, those of the frames of latents [B, T, C, H, W] from ``start`` on."""
        fresh = [layer.commit(start, tokens) for layer in self.layers]
        if self.archive is not None:
            self.archive.write(start, latents, fresh[self.unread :], prompt=prompt)

    def close(self) -> None:
        """Free what is held: window, buffers and archive."""
        self.layers = []
        if self.archive is not None:
            self.archive.close()

    def move_sink(self, frame: int) -> None:
        """Make the frames from ``frame`` on the sink; their keys and values are to be committed next."""
        for layer in self.layers:
            layer.pages.sink_start = frame

    @property
    def moved(self) -> int:
        """Pages copied to the device so far; 0 where all of them are there."""
        return 0 if self.archive is None else self.archive.moved

    @property
    def bytes(self) -> int:
        """Memory held by the pages of the window (without archive: of all frames)."""
        return sum(layer.pages.bytes for layer in self.layers)
