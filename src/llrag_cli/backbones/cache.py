"""Keys and values of past latent frames, paged by frame, and the buffer a block attends to.

Keys are kept before rotation and rotated when read, once per block. Nothing is ever shifted: a page
belongs to a frame, a context names frames, and softmax does not mind the order they are gathered in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llrag_cli.backbones.rotary import rotate

ROOM = 2048  # frames to make room for at once, at most: eight minutes of video


class FramePages:
    """Keys and values [B, pages, tokens, heads, D] of the frames of one layer.

    With ``ring`` pages, frame f >= sink lives on page sink + (f - sink) mod (ring - sink), so old frames
    are overwritten. Without, page f is frame f; ``room`` for that many frames (ROOM at most) is made at once,
    and doubles when it runs out.
    """

    def __init__(
        self, *, sink: int, ring: int | None, device: torch.device | None = None, room: int | None = None
    ) -> None:
        self.sink = sink
        self.ring = ring
        self.device = device
        self.room = min(room or 0, ROOM)
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def page(self, frames: Tensor) -> Tensor:
        """Where frames live."""
        if self.ring is None:
            return frames
        turned = self.sink + (frames - self.sink) % (self.ring - self.sink)
        return torch.where(frames < self.sink, frames, turned)

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Copy the keys and values [B, T, tokens, heads, D] of frames start .. start + T - 1 in."""
        count = keys.shape[1]
        device = self.device or keys.device
        self._make_room(start + count, keys, device)
        assert self._keys is not None and self._values is not None
        pages = self.page(torch.arange(start, start + count)).to(device)
        self._keys.index_copy_(1, pages, keys.to(device))
        self._values.index_copy_(1, pages, values.to(device))

    def read(self, frames: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, tokens, heads, D] of frames, [N] for all videos or [B, N] one row each."""
        assert self._keys is not None and self._values is not None
        pages = self.page(frames).to(self._keys.device)
        if frames.ndim == 1:
            found = self._keys.index_select(1, pages), self._values.index_select(1, pages)
        else:
            rows = torch.arange(len(pages), device=pages.device)[:, None]
            found = self._keys[rows, pages], self._values[rows, pages]
        return found[0].to(device, non_blocking=True), found[1].to(device, non_blocking=True)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(part.numel() * part.element_size() for part in (self._keys, self._values) if part is not None)

    def _make_room(self, frames: int, like: Tensor, device: torch.device) -> None:
        needed = max(frames, self.room) if self.ring is None else self.ring
        old_keys, old_values = self._keys, self._values
        if old_keys is not None and old_keys.shape[1] >= needed:
            return
        capacity = needed if old_keys is None else max(needed, 2 * old_keys.shape[1])
        shape = (like.shape[0], capacity, *like.shape[2:])
        self._keys = torch.empty(shape, dtype=like.dtype, device=device)
        self._values = torch.empty(shape, dtype=like.dtype, device=device)
        if old_keys is not None and old_values is not None:
            self._keys[:, : old_keys.shape[1]] = old_keys
            self._values[:, : old_values.shape[1]] = old_values


class WanKVLayerCache:
    """The keys and values that one self-attention layer reads: the block's own slots, then its context.

    The buffer is [B, (block + context) * tokens, heads, D]; a block's passes rewrite only its own slots.
    """

    def __init__(self, pages: FramePages, archive: FramePages | None) -> None:
        self.pages = pages
        self.archive = archive
        self._buffer: tuple[Tensor, Tensor] | None = None
        self._visible = [slice(0, 0)]
        self._block = 0
        self.fresh: tuple[Tensor, Tensor] | None = None  # the last pass's own keys (not rotated) and values

    def gather(self, parts: list[tuple[Tensor, Tensor]], tables: list[Tensor], *, block: int, hidden: slice) -> None:
        """Rotate and lay out the context, parts [B, N, tokens, heads, D].

        ``block`` counts the block's tokens; ``hidden`` are those of them that it does not attend to itself.
        """
        total = block + sum(keys.shape[1] * keys.shape[2] for keys, _ in parts)
        if parts:
            self._reserve(total, parts[0][0])
        place = block
        for (keys, values), table in zip(parts, tables, strict=True):
            assert self._buffer is not None
            end = place + keys.shape[1] * keys.shape[2]
            self._buffer[0][:, place:end] = rotate(keys.flatten(1, 2), table)
            self._buffer[1][:, place:end] = values.flatten(1, 2)
            place = end
        self._block = block
        around = (
            (slice(0, hidden.start), slice(hidden.stop, total)) if hidden.stop > hidden.start else (slice(0, total),)
        )
        self._visible = [part for part in around if part.stop > part.start]

    def store(self, keys: Tensor, values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Put the block's keys (not yet rotated) and values [B, L, heads, D] in its slots; returns all it sees."""
        self.fresh = keys, values
        self._reserve(max(self._block, self._visible[-1].stop), keys)
        assert self._buffer is not None
        self._buffer[0][:, : self._block] = rotate(keys, table)
        self._buffer[1][:, : self._block] = values
        seen = [[part[:, place] for place in self._visible] for part in self._buffer]  # views
        return (seen[0][0], seen[1][0]) if len(self._visible) == 1 else (torch.cat(seen[0], 1), torch.cat(seen[1], 1))

    def commit(self, start: int, tokens: int) -> None:
        """Keep the last pass's keys and values as those of frames from ``start`` on."""
        assert self.fresh is not None
        keys, values = (part.unflatten(1, (-1, tokens)) for part in self.fresh)
        self.pages.write(start, keys, values)
        if self.archive is not None:
            self.archive.write(start, keys, values)
        self.fresh = None

    def _reserve(self, length: int, like: Tensor) -> None:
        if self._buffer is None or self._buffer[0].shape[1] < length:
            shape = (like.shape[0], length, *like.shape[-2:])
            grown = (like.new_empty(shape), like.new_empty(shape))
            if self._buffer is not None:
                for new, old in zip(grown, self._buffer, strict=True):
                    new[:, : old.shape[1]] = old
            self._buffer = grown


class WanKVCache:
    """The caches of all layers of one rollout.

    ``recent`` frames besides the sink stay on the compute device; ``None`` keeps all of them there.
    With an archive every frame can be read back; it lives on ``archive_device``. ``frames`` is how many are
    expected in all, where that is known.
    """

    def __init__(
        self,
        *,
        layers: int,
        sink: int,
        recent: int | None,
        archive: bool = False,
        archive_device: torch.device | None = None,
        frames: int | None = None,
    ) -> None:
        def layer() -> WanKVLayerCache:
            if archive and archive_device is None:  # one place serves both
                return WanKVLayerCache(FramePages(sink=sink, ring=None, room=frames), None)
            ring = None if recent is None else sink + recent
            kept = FramePages(sink=sink, ring=None, device=archive_device, room=frames) if archive else None
            return WanKVLayerCache(FramePages(sink=sink, ring=ring, room=frames), kept)

        self.layers = [layer() for _ in range(layers)]

    @property
    def bytes(self) -> int:
        """Memory held by pages, window and archive together."""
        return sum(
            layer.pages.bytes + (layer.archive.bytes if layer.archive is not None else 0) for layer in self.layers
        )
