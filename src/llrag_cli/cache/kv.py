"""Keys and values of past latent frames, paged by frame, and the buffer a block attends to.

Keys are stored before rotation and rotated when read: once per block, or in every pass where layers share a buffer of
keys. Nothing is ever shifted: a page belongs to a frame, a context is a list of frames, and attention does not depend
on their order. Which pages a block reads is known to the host, so pages are read and written through slices: no index
ever travels to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, cat, float32

from llrag_cli.cache.archive import Archive, Recompute
from llrag_cli.cache.context import Context
from llrag_cli.cache.pages import LayerKV
from llrag_cli.cache.rotary import rotate, rotate_into
from llrag_cli.cache.sharing import Sharing

SMALLEST_DEVIATION = 1e-6  # of a channel over the tokens of a frame, so that one that is constant stays finite


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
        self._mean: tuple[Tensor, ...] | None = None  # keys and values of the sink, in float32

    def page(self, frame: int) -> int:
        """The page of a frame."""
        if self.ring is None:
            return frame + self.references
        if -self.pinned <= frame < 0:
            return frame + self.count
        if 0 <= frame - self.sink_start < self.sink:
            return frame - self.sink_start
        return self.sink + (frame - self.sink) % (self.ring - self.sink)

    def runs(self, frames: Iterable[int]) -> Iterator[tuple[slice, slice]]:
        """The frames as runs of neighbouring pages: positions among the frames, and pages."""
        first = start = position = -1
        for position, page in enumerate(map(self.page, frames)):
            if first >= 0 and page == first + position - start:
                continue
            if first >= 0:
                yield slice(start, position), slice(first, first + position - start)
            first, start = page, position
        if first >= 0:
            yield slice(start, position + 1), slice(first, first + position + 1 - start)

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values [B, T, tokens, heads, D] of frames start .. start + T - 1."""
        if self._keys is None or self._values is None:
            shape = (len(keys), self.count, *keys.shape[2:])
            self._keys, self._values = keys.new_empty(shape), values.new_empty(shape)
        if self.sink_of(range(start, start + keys.shape[1])):
            self._mean = None  # it begins again
        for frames, pages in self.runs(range(start, start + keys.shape[1])):
            self._keys[:, pages] = keys[:, frames]
            self._values[:, pages] = values[:, frames]

    def average_into_sink(self, frames: Sequence[int], decay: float) -> None:
        """Average frames into the sink, one after the other: each into the frame of the sink whose turn it is.

        The sink keeps the weight ``decay``. The mean is kept in float32, as half precision would round it away.
        """
        assert self._keys is not None and self._values is not None
        pages = self._keys, self._values
        if self._mean is None:
            self._mean = tuple(part[:, : self.sink].float() for part in pages)  # in float32 the pages themselves
        for frame in frames:
            turn = (frame - self.sink_start - self.sink) % self.sink
            for part, mean in zip(pages, self._mean, strict=True):
                mean[:, turn].lerp_(part[:, self.page(frame)].float(), 1 - decay)
                part[:, turn] = mean[:, turn]

    def sink_of(self, frames: Iterable[int]) -> list[int]:
        """Those of the frames that are of the sink."""
        return [frame for frame in frames if 0 <= frame - self.sink_start < self.sink]

    def views(self, frames: Sequence[int]) -> Iterator[LayerKV]:
        """Keys and values [B, n, tokens, heads, D] of frames, in runs of neighbouring pages."""
        assert self._keys is not None and self._values is not None
        for _, pages in self.runs(frames):
            yield self._keys[:, pages], self._values[:, pages]

    def read(self, frames: Sequence[int]) -> LayerKV:
        """Keys and values [B, N, tokens, heads, D] of N > 0 frames, copied."""
        keys, values = zip(*self.views(frames), strict=True)
        return cat(keys, dim=1), cat(values, dim=1)

    @property
    def bytes(self) -> int:
        """Memory held."""
        pages = [part for part in (self._keys, self._values) if part is not None]
        mean = [part for part in self._mean or () if part.dtype != pages[0].dtype]  # otherwise it is a view
        return sum(part.numel() * part.element_size() for part in (*pages, *mean))


class KVBuffer:
    """Keys, rotated, or values [B, length, heads, D] that a layer attends to: the block's own, then its context.

    It is allocated at its full size of ``frames``, and grows only if a context is longer. Layers can share one.
    """

    def __init__(self, frames: int, *, shared: bool = False) -> None:
        self.frames, self.shared = frames, shared
        self.holder: WanKVLayerCache | None = None  # the layer whose context it holds
        self.tensor: Tensor | None = None

    def reserve(self, length: int, tokens: int, like: Tensor) -> Tensor:
        """The buffer, with room for ``length`` tokens like those of [B, ..., heads, D]; a frame has ``tokens``."""
        if self.tensor is None or self.tensor.shape[1] < length:
            self.tensor = None  # before the larger one is allocated
            self.tensor = like.new_empty(like.shape[0], max(length, self.frames * tokens), *like.shape[-2:])
        return self.tensor

    def free(self) -> None:
        """Give the memory back at once; the layer that holds the buffer also refers to it."""
        self.tensor = self.holder = None

    @property
    def bytes(self) -> int:
        """Memory held."""
        return 0 if self.tensor is None else self.tensor.numel() * self.tensor.element_size()


Buffers = tuple[KVBuffer, KVBuffer]  # of keys and of values


@dataclass(frozen=True)
class Piece:
    """Keys, not rotated, or values of neighbouring frames of a context: tensors [b, n, tokens, heads, D] in order."""

    parts: Sequence[Tensor]
    rows: slice  # of the batch
    frame: int  # position of the first of them in the context


KEYS, VALUES = range(2)
Pieces = Callable[[int], Iterable[Piece]]  # of keys, or of values


class Observer:
    """What the last pass asked for and left in one layer: mean queries and keys, not rotated, in float32."""

    heads: int
    query: Tensor  # [B, heads * D], over the tokens of the block
    keys: Tensor  # [B, T, heads * D], over the tokens of each frame


class WanKVLayerCache:
    """The keys and values that one self-attention layer reads: the block's own slots, then its context.

    A block's passes rewrite only its own slots, unless other layers use the buffers too.
    """

    def __init__(self, pages: FramePages, buffers: Buffers) -> None:
        self.pages, self.buffers = pages, buffers
        self.observer: Observer | None = None
        self.keeps_fresh = False  # whether a pass leaves its keys and values in ``fresh``
        self.commits_to: int | None = None  # whether a pass writes them to the pages of frames from this one on
        self.fresh: LayerKV | None = None  # keys, not rotated, and values [B, L, heads, D] of the last pass
        self._pieces: Pieces = lambda _: ()
        self._table: Tensor | None = None
        self._tokens: int  # of a frame; all of these are set by ``set_context``
        self._block: int
        self._visible: list[slice]
        self._without_retrieved: list[slice]
        self._all: list[slice]

    def set_context(
        self,
        pieces: Pieces,
        table: Tensor,
        *,
        frames: int,
        tokens: int,
        block: int,
        hidden: slice,
        retrieved: int = 0,
    ) -> None:
        """Attend to the ``pieces`` of a context of so many ``frames``, rotated by the table [B or 1, L, 1, D/2, 2].

        ``block`` counts the block's tokens; ``hidden`` are those of them that it does not attend to itself. The last
        ``retrieved`` frames of the context can be left out by ``set_reading``.
        """
        self._pieces, self._table, self._tokens, self._block = pieces, table, tokens, block
        total = block + frames * tokens
        self._all, self._without_retrieved = (_around(hidden, end) for end in (total, total - retrieved * tokens))
        self._visible = self._all
        for kind, buffer in enumerate(self.buffers):
            buffer.holder = None
            if not buffer.shared:
                self._fill(kind)

    def set_reading(self, *, retrieved: bool) -> None:
        """Whether the next passes attend to retrieved frames; after ``set_context`` they do."""
        self._visible = self._all if retrieved else self._without_retrieved

    def store(self, keys: Tensor, turned: Tensor, values: Tensor) -> LayerKV:
        """Write the block's keys (as they are, and rotated) and values [B, L, heads, D]; returns all it attends to."""
        if self.keeps_fresh:
            self.fresh = keys, values
        if self.observer is not None:
            self.observer.keys = keys.unflatten(1, (-1, self._tokens)).mean(2, dtype=float32).flatten(2)
        if self.commits_to is not None:
            self.pages.write(self.commits_to, *(part.unflatten(1, (-1, self._tokens)) for part in (keys, values)))
        return self._seen(KEYS, turned), self._seen(VALUES, values)

    def _seen(self, kind: int, fresh: Tensor) -> Tensor:
        """Write the block's own keys or values [B, L, heads, D] to their buffer; returns all that it attends to."""
        buffer = self.buffers[kind]
        if buffer.holder is not self:
            self._fill(kind)
        whole = buffer.reserve(self._needed, self._tokens, fresh)
        whole[:, : self._block] = fresh
        seen = [whole[:, visible] for visible in self._visible]  # views
        return seen[0] if len(seen) == 1 else cat(seen, 1)

    @property
    def _needed(self) -> int:
        """Tokens of the block and its context."""
        return max(self._block, self._all[-1].stop)

    @property
    def places(self) -> tuple[object, ...] | None:
        """Where passes over the block read and write, so that they can be recorded and repeated.

        None if that is not all that they do: if another layer uses a buffer, or Python is shown what they compute.
        """
        if self.observer is not None or self.keeps_fresh or self.commits_to is not None:
            return None
        tensors = [None if buffer.shared else buffer.tensor for buffer in self.buffers]
        if any(each is None or each.shape[1] < self._needed for each in tensors):  # the next pass allocates it
            return None
        parts = tuple((each.data_ptr(), each.shape) for each in tensors if each is not None)
        return parts, self._block, tuple((part.start, part.stop) for part in self._visible)

    def observe(self, query: Tensor, table: Tensor) -> None:
        """Show the observer the block's queries [B, L, heads, D], which the table [1, L, 1, D/2, 2] has rotated."""
        if self.observer is not None:
            back = table * table.new_tensor((1, -1))  # the opposite angles
            self.observer.heads = query.shape[2]
            self.observer.query = rotate(query, back).mean(1, dtype=float32).flatten(1)

    @property
    def bytes(self) -> int:
        """Memory that the buffers hold."""
        return sum(buffer.bytes for buffer in self.buffers)

    def _fill(self, kind: int) -> None:
        """Bring the keys, rotated, or the values of the context to their buffer."""
        buffer = self.buffers[kind]
        buffer.holder = self
        for piece in self._pieces(kind):
            assert self._table is not None
            whole = buffer.reserve(self._all[-1].stop, self._tokens, piece.parts[0])
            begin = end = piece.frame * self._tokens
            end += sum(part.shape[1] for part in piece.parts) * self._tokens
            target = whole[piece.rows, self._block + begin : self._block + end]
            if kind == VALUES:
                cat([part.flatten(1, 2) for part in piece.parts], dim=1, out=target)
                continue
            rows = piece.rows if len(self._table) > 1 else slice(None)
            rotate_into(target, in_float32(piece.parts).flatten(1, 2), self._table[rows, begin:end])


def in_float32(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [b, n, ...] as one [b, N, ...] in float32; they are copied once, or not at all."""
    if len(parts) == 1:
        return parts[0].float()
    shape = parts[0].shape
    whole = parts[0].new_empty(shape[0], sum(part.shape[1] for part in parts), *shape[2:], dtype=float32)
    end = 0
    for part in parts:
        end += part.shape[1]
        whole[:, end - part.shape[1] : end] = part  # cast as it is copied
    return whole


def _around(hidden: slice, end: int) -> list[slice]:
    """The parts of the first ``end`` tokens that are not hidden."""
    around = (slice(0, hidden.start), slice(hidden.stop, end)) if hidden.stop > hidden.start else (slice(0, end),)
    return [part for part in around if part.stop > part.start]


def aligned(parts: Tensor, trusted: Tensor, strength: float) -> Tensor:
    """Keys or values [B, K, tokens, heads, D] with mean and deviation moved towards those of trusted ones [B, S, ...].

    For each frame, head and channel, over tokens: 0 moves nothing, 1 all the way (TAME of TetherCache, arXiv
    2606.13035, which trusts the frames that it has retrieved before as well).
    """
    frames, anchor = parts.float(), trusted.float().flatten(1, 2)
    mean, deviation = frames.mean(2, keepdim=True), frames.std(2, correction=0, keepdim=True)
    goal = anchor.mean(1)[:, None, None], anchor.std(1, correction=0)[:, None, None]  # [B, 1, 1, heads, D]
    moved = (frames - mean) / deviation.clamp_min(SMALLEST_DEVIATION) * goal[1] + goal[0]
    return frames.lerp(moved, strength).to(parts.dtype)


class WanKVCache:
    """The caches of all layers of one rollout of ``frames`` frames.

    ``recent`` frames besides the sink stay on the compute device, and the last ``pinned`` of the ``references``;
    ``None`` keeps all frames there. With an ``archive``, frames that left can be read back. Passes that compute an old
    block again attend to ``commit_sink`` frames of the sink, by default to all. The first ``unread`` layers attend to
    no retrieved frames: they have no archive, and keep ``unread_recent`` frames besides the sink (None: all).

    A block and its context are ``attended`` frames at most, ``unread_attended`` in the unread layers, for which the
    buffers are allocated at once. Layers can be ``sharing`` one buffer of values, or of keys as well: each gathers its
    context in every pass anew, which saves the memory of all others. Retrieved keys and values are ``aligned`` with
    those of the sink.
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
        attended: int = 0,
        unread_attended: int = 0,
        sharing: Sharing = "none",
        alignment: float = 0.0,
    ) -> None:
        self.sink, self.alignment = sink, alignment
        self.commit_sink = sink if commit_sink is None else commit_sink
        self.window = None if recent is None else sink + recent
        self.unread = unread
        shared = sharing == "all", sharing != "none"  # keys, values
        longest = max(attended, unread_attended if unread else 0)
        common = KVBuffer(longest, shared=True), KVBuffer(longest, shared=True)

        def layer(number: int) -> WanKVLayerCache:
            kept, seen = (unread_recent, unread_attended) if number < unread else (recent, attended)
            ring = None if kept is None else sink + kept
            pages = FramePages(sink=sink, ring=ring, frames=frames, references=references, pinned=pinned)
            keys, values = (common[kind] if shared[kind] else KVBuffer(seen) for kind in (KEYS, VALUES))
            return WanKVLayerCache(pages, (keys, values))

        self.layers = [layer(number) for number in range(layers)]
        self.archive = archive
        self._reads_in_passes = any(shared)  # pages of the context, not only once before them
        self._newest = -references - 1  # the last frame that was written

    def fetch(self, retrieved: Sequence[Sequence[int]], recompute: Recompute) -> None:
        """Make sure that the pages of retrieved frames [B][K] are on the device."""
        if self.archive is not None:
            self.archive.fetch(retrieved, recompute)

    def gather(self, context: Context, table: Tensor, *, block: int, tokens: int) -> None:
        """Have all layers attend to a context, whose retrieved frames are fetched.

        The block has ``block`` frames of ``tokens`` each. ``table`` [B or 1, N * tokens, 1, D/2, 2] are the rotary
        angles of the context, shared frames first.
        """
        for number, layer in enumerate(self.layers):
            reads = context.retrieved_count if number >= self.unread else 0
            layer.set_context(
                lambda kind, number=number: self._pieces(number, kind, context),  # type: ignore[misc]
                table,
                frames=len(context.shared) + reads,
                tokens=tokens,
                block=block * tokens,
                hidden=slice(context.hidden.start * tokens, context.hidden.stop * tokens),
                retrieved=reads,
            )
        if not self._reads_in_passes:
            self.release()

    def release(self) -> None:
        """The slots of retrieved frames have been read for the last time in this block."""
        if self.archive is not None:
            self.archive.release()

    def retrieved(self, layer: int, retrieved: Sequence[Sequence[int]]) -> LayerKV:
        """Keys and values [B, K, tokens, heads, D] of fetched frames [B][K], of a layer that reads them, copied."""
        keys, values = (
            cat([cat(self._found(layer, kind, row, frames), dim=1) for row, frames in enumerate(retrieved)])
            for kind in (KEYS, VALUES)
        )
        return keys, values

    @contextmanager
    def committing(self, start: int, count: int) -> Iterator[None]:
        """The pass in this context writes its keys and values to the pages of ``count`` frames from ``start`` on."""
        if self.archive is not None:  # pages are archived from where they are, so not before that is done
            first_sink, end = self.layers[-1].pages.sink_start, start + count
            in_sink = first_sink < end and start < first_sink + self.sink
            again = self.window is None or in_sink or start <= self._newest
            self.archive.settle(None if again else end - (self.window or 0) + self.sink)
        self._newest = max(self._newest, start + count - 1)
        for layer in self.layers:
            layer.commits_to = start
        try:
            yield
        finally:
            for layer in self.layers:
                layer.commits_to = None
        if self._reads_in_passes:
            self.release()

    def commit(self, start: int, latents: Tensor, *, prompt: int = 0) -> None:
        """Archive the frames of latents [B, T, C, H, W] from ``start`` on, which the last pass wrote to the pages."""
        if self.archive is not None:
            pages = [layer.pages for layer in self.layers[self.unread :]]
            self.archive.write(
                start, latents, len(pages), lambda layer, frame: next(pages[layer].views([frame])), prompt=prompt
            )

    def close(self) -> None:
        """Free what is held: window, buffers and archive."""
        if self.archive is not None:
            self.archive.close()  # first: it may still be copying from the pages of the window
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer.free()
        self.layers = []

    def move_sink(self, frame: int) -> None:
        """Make the frames from ``frame`` on the sink; their keys and values are to be committed next."""
        for layer in self.layers:
            layer.pages.sink_start = frame

    def observe(self, layer: int) -> Observer:
        """The observer of a layer."""
        self.layers[layer].observer = observer = Observer()
        return observer

    def average_into_sink(self, frames: Sequence[int], decay: float) -> None:
        """Average frames that are still on the device into the sink, as ``FramePages.average_into_sink``."""
        for layer in self.layers if frames else ():
            layer.pages.average_into_sink(frames, decay)

    @property
    def moved(self) -> int:
        """Pages copied to the device so far; 0 where all of them are there."""
        return 0 if self.archive is None else self.archive.moved

    @property
    def bytes(self) -> int:
        """Memory held by the pages of the window (without archive: of all frames)."""
        return sum(layer.pages.bytes for layer in self.layers)

    def _pieces(self, number: int, kind: int, context: Context) -> Iterator[Piece]:
        """The keys or the values that a layer reads of a context."""
        pages = self.layers[number].pages
        if context.shared:
            yield Piece([views[kind] for views in pages.views(context.shared)], slice(None), 0)
        trusted = pages.sink_of(context.shared) if self.alignment and context.retrieved else []
        sink = cat([views[kind] for views in pages.views(trusted)], dim=1) if trusted else None
        for row, frames in enumerate(context.retrieved if number >= self.unread else ()):
            one, parts = slice(row, row + 1), self._found(number, kind, row, frames)
            if sink is not None:
                parts = [aligned(cat(parts, dim=1), sink[one], self.alignment)]
            yield Piece(parts, one, len(context.shared))

    def _found(self, layer: int, kind: int, row: int, frames: Sequence[int]) -> list[Tensor]:
        """Keys or values [1, n, tokens, heads, D] of fetched frames of one video, in order."""
        if self.archive is not None:
            return self.archive.read(layer - self.unread, kind, row, frames)
        return [views[kind][row : row + 1] for views in self.layers[layer].pages.views(frames)]
