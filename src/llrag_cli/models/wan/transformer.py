"""diffusers' ``WanTransformer3DModel`` as an autoregressive backbone.

The class is unmodified. Four kinds of modules are replaced on the instance: the rotary embedding (by one that is
given its table), the timestep sinusoid (by one in float64, as the original computes it), and the attention processors
(self-attention reads and writes a cache; cross-attention keeps the prompt's keys and values).

``WanBackbone`` holds weights only. All that one video (or batch) needs while it is generated belongs to a
``WanSession``; the replaced modules are bound to a session for the length of a forward pass.

To the compiler, self-attention with its cache is one operator that it does not look into, so what a block attends to
changes no shape that it knows: one graph serves all blocks of a video.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from torch import Tensor, nn

from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import KVBuffer, Piece, WanKVCache, WanKVLayerCache
from llrag_cli.cache.pages import LayerKV
from llrag_cli.cache.rotary import TABLES, RotaryTables, rotate
from llrag_cli.cache.sharing import Sharing
from llrag_cli.files.transfer import to_device
from llrag_cli.models.compiled_calls import CompiledCalls
from llrag_cli.models.wan.graphs import PassGraphs, Recorder


class Timesteps64(nn.Module):
    """Sinusoids of a timestep, angles in float64: cosines first, then sines."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def forward(self, timesteps: Tensor) -> Tensor:
        """float64 embeddings [N, channels] of timesteps [N] in 0..1000."""
        if self.frequencies.device != timesteps.device:
            self.frequencies = to_device(self.frequencies, timesteps.device)
        angles = timesteps.double()[:, None] * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class BoundRotary(nn.Module):
    """Takes the place of ``WanTransformer3DModel.rope``: returns the table of the session that is bound."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The table [1, L, 1, D/2, 2] of the block's own frames, for input [B, C, T, H, W]."""
        assert self.table is not None
        return self.table


class LastKeysStored(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside the last layer of a clean pass: everything the pass is for has been stored by then."""


@dataclass
class Pass:
    """What self-attention needs of the session that a forward pass is bound to."""

    caches: Sequence[WanKVLayerCache]
    table: Tensor  # rotary angles [1, L, 1, D/2, 2] of the block
    stops_early: bool = False  # it is for what it stores alone
    backend: Any = None  # of diffusers' list; None is its default

    def store(self, layer: int, key: Tensor, turned: Tensor, value: Tensor) -> LayerKV:
        """As ``WanKVLayerCache.store``."""
        stored = self.caches[layer].store(key, turned, value)
        if self.stops_early and layer == len(self.caches) - 1 and self.caches[layer].observer is None:
            raise LastKeysStored
        return stored

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of the block's tokens [B, L, heads, D] to what a layer has stored."""
        self.caches[layer].observe(query, self.table)
        attended: Tensor = dispatch_attention_fn(query, keys, values, backend=self.backend)
        return attended.flatten(2, 3).type_as(query)


class _Bound(threading.local):
    """The pass that each thread is in."""

    current: Pass | None = None


_bound = _Bound()


@torch.library.custom_op("llrag::attend_with_cache", mutates_args=())
def attend_with_cache(query: Tensor, key: Tensor, turned: Tensor, value: Tensor, layer: Tensor) -> Tensor:
    """Self-attention [B, L, heads * D] of a layer (a scalar of the CPU) and its cache, in a compiled block.

    The cache, which it writes to, is the bound pass's; nothing else in the graph reads it.
    """
    assert _bound.current is not None
    number = int(layer)
    keys, values = _bound.current.store(number, key, turned, value)
    return _bound.current.attend(number, query, keys, values).contiguous()


@attend_with_cache.register_fake
def _(query: Tensor, key: Tensor, turned: Tensor, value: Tensor, layer: Tensor) -> Tensor:
    return query.new_empty(*query.shape[:2], query.shape[2] * query.shape[3])


class CachedSelfAttention:
    """Attention of the block's tokens to themselves and to the context in the layer's cache."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.number = torch.tensor(layer)  # as a tensor, so that the compiler does not see a constant

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B, L, dim] for modulated input [B, L, dim]; rotary_emb is the table of ``BoundRotary``."""
        assert rotary_emb is not None
        heads = (attn.heads, -1)
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads)
        value = attn.to_v(hidden_states).unflatten(2, heads)
        turned = rotate(key, rotary_emb)
        if torch.compiler.is_compiling():
            query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), rotary_emb)
            attended = attend_with_cache(query, key, turned, value, self.number)
        else:
            assert _bound.current is not None
            keys, values = _bound.current.store(self.layer, key, turned, value)
            query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), rotary_emb)
            attended = _bound.current.attend(self.layer, query, keys, values)
        output: Tensor = attn.to_out[0](attended)
        return output


class PromptCrossAttention:
    """Attention to the prompt, whose keys and values [B, text, heads, D] are computed once per prompt."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.backend: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B, L, dim] for input [B, L, dim]; the text is that of the bound session."""
        assert self.keys is not None and self.values is not None
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, self.keys, self.values, backend=self.backend)
        attended = attended.flatten(2, 3).type_as(query)
        output: Tensor = attn.to_out[0](attended)
        return output


@dataclass(frozen=True)
class PromptKV:
    """A prompt as the backbone reads it: keys and values [B, text, heads, D] of each layer."""

    layers: tuple[LayerKV, ...]
    empty: Tensor  # [B, 0, D_text], for the forward pass, which needs the text itself no more

    def row(self, index: int) -> PromptKV:
        """The prompt of one video of the batch."""
        one = slice(index, index + 1)
        return PromptKV(tuple((keys[one], values[one]) for keys, values in self.layers), self.empty[one])


class WanBackbone:
    """A frozen Wan transformer; ``start`` begins a video. Latents are [B, T, C, H, W] at its interface."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        config = transformer.config
        self.transformer = transformer.eval().requires_grad_(requires_grad=False)
        self.patch_size: tuple[int, int, int] = tuple(config.patch_size)
        self.channels: int = config.in_channels
        self.rotary = RotaryTables(config.attention_head_dim)
        self._bound_rotary = BoundRotary()
        transformer.rope = self._bound_rotary
        transformer.condition_embedder.timesteps_proj = Timesteps64(config.freq_dim)
        self._self_attention = [CachedSelfAttention(layer) for layer in range(len(transformer.blocks))]
        self._cross_attention = [PromptCrossAttention() for _ in transformer.blocks]
        for block, own, cross in zip(transformer.blocks, self._self_attention, self._cross_attention, strict=True):
            block.attn1.set_processor(own)
            block.attn2.set_processor(cross)
        self._lock = threading.RLock()  # sessions of several threads take turns, pass by pass
        self.sharing: Sharing = "none"  # buffers of a session, as in ``WanKVCache``
        self._offloaded_device: torch.device | None = None
        self._stops_early = True
        self._attention: Any = None  # backend of self-attention
        self._timesteps: dict[float, Tensor] = {}  # on the device
        self._compiles = _Compiled()
        self.recorder: Recorder | None = None  # of denoising passes; None: they are not recorded

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._offloaded_device or self.transformer.patch_embedding.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of latents and activations."""
        dtype: torch.dtype = self.transformer.patch_embedding.weight.dtype
        return dtype

    @property
    def layers(self) -> int:
        """Transformer layers, each with a cache."""
        return len(self._self_attention)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a latent frame of a size in latent pixels."""
        return height // self.patch_size[1], width // self.patch_size[2]

    def set_offloaded(self, device: torch.device) -> None:
        """Compute on a device while the weights are kept elsewhere."""
        self._offloaded_device = device
        self._stops_early = False  # a pass that ends half way would leave the offloading half way

    @property
    def attention(self) -> str:
        """The backend of diffusers that computes attention."""
        backend = self._attention or _AttentionBackendRegistry.get_active_backend()[0]
        return str(backend.value)

    def set_attention(self, name: str) -> None:
        """Compute attention with one of diffusers' backends, which is known to work here."""
        backend = AttentionBackendName(name)
        self._attention = backend
        for cross in self._cross_attention:
            cross.backend = backend

    def compile(self, frames: int, **how: Any) -> None:
        """Compile the block that all layers repeat, as ``torch.compile`` does; the first pass takes long.

        Compiled are passes over ``frames`` latent frames, those of a block. Passes over more or fewer, which are rare,
        as when the prompt changes, run as they are.
        """
        self._compiles.frames = frames
        for block in self.transformer.blocks:
            self._compiles.wrap(block, **how)

    @property
    def is_compiled(self) -> bool:
        """Whether passes over a block run compiled."""
        return self._compiles.frames is not None

    def start(self, prompt: Tensor, cache: WanKVCache) -> WanSession:
        """Begin a video under prompt embeddings [B, text, D_text] (zero rows after the words), with an empty cache."""
        return WanSession(self, prompt, cache)

    @torch.no_grad()
    def prompt_kv(self, prompt: Tensor) -> PromptKV:
        """Keys and values of prompt embeddings [B, text, D_text] in each layer's cross-attention."""
        prompt = prompt.to(self.device, self.dtype)
        with self._lock:
            text = self.transformer.condition_embedder.text_embedder(prompt)
            layers = []
            for block in self.transformer.blocks:
                attn, heads = block.attn2, (block.attn2.heads, -1)
                keys = attn.norm_k(attn.to_k(text)).unflatten(2, heads)
                layers.append((keys, attn.to_v(text).unflatten(2, heads)))
        return PromptKV(tuple(layers), prompt[:, :0])

    @torch.no_grad()
    def forward(
        self,
        latents: Tensor,
        timestep: Tensor | float,
        *,
        caches: Sequence[WanKVLayerCache],
        prompt: PromptKV,
        table: Tensor,
        stops_early: bool = False,
    ) -> Tensor:
        """One pass: predicted flow (noise - clean) of latents [B, T, C, H, W] at a timestep, a scalar in 0..1000.

        Self-attention uses the ``caches`` of the layers, cross-attention the prompt, and ``table`` [1, L, 1, D/2, 2]
        are the rotary angles of the block's own tokens.
        """
        steps = self.on_device(timestep).expand(latents.shape[0])
        with self._bind(Pass(caches, table, stops_early, self._attention), prompt, table):
            predicted: Tensor = self.transformer(
                latents.transpose(1, 2),  # [B, C, T, H, W]
                timestep=steps,
                encoder_hidden_states=prompt.empty,
                return_dict=False,
            )[0]
        return predicted.transpose(1, 2)

    def flow(self, latents: Tensor, timestep: Tensor, **bound: Any) -> Tensor:
        """As ``forward``, of a pass that generates."""
        with self._lock, self._compiles.run(latents.shape):
            return self.forward(latents, timestep, **bound)

    def store_keys(
        self, latents: Tensor, timestep: float, *, caches: Sequence[WanKVLayerCache], prompt: PromptKV, table: Tensor
    ) -> None:
        """One pass for the keys and values that it stores in the caches; it ends as soon as they are complete."""
        with self._lock, self._compiles.run(latents.shape):
            stops = self._stops_early and not self._compiles.on
            with suppress(LastKeysStored):
                self.forward(latents, timestep, caches=caches, prompt=prompt, table=table, stops_early=stops)

    def exclusive(self) -> AbstractContextManager[object]:
        """Sessions of other threads compute no pass in this context."""
        return self._lock

    def on_device(self, timestep: Tensor | float) -> Tensor:
        """A timestep as a tensor on the device; copied there once."""
        if isinstance(timestep, Tensor) and timestep.device == self.device:
            return timestep
        value = float(timestep)  # of the host, so nothing is waited for
        if value not in self._timesteps or self._timesteps[value].device != self.device:
            dtype = timestep.dtype if isinstance(timestep, Tensor) else torch.float32
            self._timesteps[value] = to_device(torch.tensor(value, dtype=dtype), self.device)
        return self._timesteps[value]

    @contextmanager
    def _bind(self, current: Pass, prompt: PromptKV, table: Tensor) -> Iterator[None]:
        """Bind the replaced modules to one session, and release them: the weights keep nothing of a video."""
        with self._lock:
            before, _bound.current = _bound.current, current
            for cross, (keys, values) in zip(self._cross_attention, prompt.layers, strict=True):
                cross.keys, cross.values = keys, values
            self._bound_rotary.table = table
            try:
                yield
            finally:
                _bound.current = before
                for cross in self._cross_attention:
                    cross.keys = cross.values = None
                self._bound_rotary.table = None


class _Compiled:
    """Which passes run compiled: those over as many frames as a block has."""

    def __init__(self) -> None:
        self.on = False  # whether the pass at hand does
        self.frames: int | None = None  # of a block; None: no pass does
        self._calls = CompiledCalls()

    def wrap(self, block: nn.Module, **how: Any) -> None:
        """Let a block of the transformer have both ways."""
        eager: Callable[..., Tensor] = block.forward
        compiled = torch.compile(eager, **{"dynamic": False, **how})
        block.forward = lambda *inputs, **named: (compiled if self.on else eager)(*inputs, **named)

    @contextmanager
    def run(self, shape: torch.Size) -> Iterator[None]:
        """A pass over latents of a shape [B, T, C, H, W] in this context."""
        before, self.on = self.on, shape[1] == self.frames
        try:
            with self._calls.call(shape) if self.on else nullcontext():
                yield
        finally:
            self.on = before


class WanSession:
    """One video, or batch, of a backbone: its cache, its prompt's keys and values, its rotary times.

    For each block: ``set_context``, predict the ``flow`` as often as the sampler asks, then ``update_cache`` with the
    finished latents.
    """

    def __init__(self, backbone: WanBackbone, prompt: Tensor, cache: WanKVCache) -> None:
        self.backbone, self.cache = backbone, cache
        self._prompts: dict[int, PromptKV] = {}  # by number, in order; the last one is current
        self._table: Tensor | None = None
        self._prompt = -1  # number of the current prompt
        self._start = 0
        self._timestep = 0.0
        self._recent_tables: OrderedDict[Any, Tensor] = OrderedDict()
        self.graphs = None if backbone.recorder is None else PassGraphs(backbone.recorder)
        self.set_prompt(prompt)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of latents and activations."""
        return self.backbone.dtype

    def set_prompt(self, prompt: Tensor) -> None:
        """Follow prompt embeddings [B, text, D_text] from now on."""
        self._prompt += 1
        if self.graphs is not None:
            self.graphs.clear()
        if self.cache.archive is None or not self.cache.archive.recomputes:
            self._prompts.clear()  # earlier ones are needed only where their frames are computed again
        self._prompts[self._prompt] = self.backbone.prompt_kv(prompt)

    @torch.no_grad()
    def set_context(self, context: Context, *, start: int, block: int, height: int, width: int) -> None:
        """Gather, once for all passes of the block at frames start .. start + block - 1, what it attends to."""
        self._start = start
        if self.graphs is not None:
            self.graphs.begin_context()
        grid = self.backbone.grid(height, width)
        tokens = grid[0] * grid[1]
        if context.retrieved:
            self.cache.fetch(context.retrieved, self.recompute)
        alike = len({*context.retrieved_times}) == 1  # then one row of the table is enough
        retrieved = context.retrieved_times[:1] if alike else context.retrieved_times
        own = range(context.start_time, context.start_time + block)
        table = self._tables([[own], [context.shared_times], retrieved], grid)
        self._table = table[0, : block * tokens][None]  # of the same strides whatever follows it
        self.cache.gather(context, table[:, block * tokens :], block=block, tokens=tokens)

    def set_reading(self, *, retrieved: bool) -> None:
        """Whether the next passes of the block attend to retrieved frames; after ``set_context`` they do."""
        for layer in self.cache.layers:
            layer.set_reading(retrieved=retrieved)

    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Predicted flow (noise - clean) [B, T, C, H, W] of noisy latents at a timestep, a scalar in 0..1000."""
        assert self._table is not None
        layers, prompt = self.cache.layers, self._prompts[self._prompt]

        def compute(noisy: Tensor, timestep: Tensor, table: Tensor) -> Tensor:
            return self.backbone.flow(noisy, timestep, caches=layers, prompt=prompt, table=table)

        places = None if self.graphs is None else [layer.places for layer in layers]
        if self.graphs is None or places is None or None in places:
            return compute(noisy, timestep, self._table)
        with self.backbone.exclusive():
            step = self.backbone.on_device(timestep)
            return self.graphs.compute(tuple(places), compute, noisy, step, self._table)

    @torch.no_grad()
    def update_cache(self, latents: Tensor, timestep: float = 0.0, prefetch: Sequence[Sequence[int]] = ()) -> None:
        """One clean pass over finished latents [B, T, C, H, W], whose keys and values are kept.

        Frames ``prefetch`` [B][K] are those that the next block will retrieve: they are copied while the pass runs.
        """
        assert self._table is not None
        self._timestep = timestep
        prompt, cache = self._prompts[self._prompt], self.cache
        with cache.committing(self._start, latents.shape[1]):
            self.backbone.store_keys(latents, timestep, caches=cache.layers, prompt=prompt, table=self._table)
        if prefetch and cache.archive is not None:
            cache.archive.prefetch([[frame for frame in row if frame < self._start] for row in prefetch])
        cache.commit(self._start, latents, prompt=self._prompt)

    @torch.no_grad()
    def recache(self, context: Context, latents: Tensor, *, start: int, timestep: float = 0.0) -> None:
        """Compute the keys and values of old frames again under the current prompt.

        One pass over latents [B, n, C, H, W] of frames from ``start`` on, which attend to each other, later ones
        included, and to the context (LongLive v1.0, interactive inference).
        """
        height, width = latents.shape[3:]
        self.set_context(context, start=start, block=latents.shape[1], height=height, width=width)
        self.update_cache(latents, timestep)

    @torch.no_grad()
    def recompute(self, row: int, start: int, latents: Tensor, prompt: int) -> list[LayerKV]:
        """Keys and values [T, tokens, heads, D] of an old block of video ``row``, in each layer that reads them.

        One clean pass over its latents [1, T, C, H, W] of frames from ``start`` on, which attend to themselves and, if
        it lies before them and the commit rule reads it, the sink, under the prompt of a number.
        """
        assert self.cache.window is not None
        block = latents.shape[1]
        grid = self.backbone.grid(*latents.shape[3:])
        tokens = grid[0] * grid[1]
        first_sink = self.cache.layers[0].pages.sink_start
        sink = range(first_sink, max(first_sink, min(first_sink + self.cache.commit_sink, start)))
        first = min(max(0, start), self.cache.window - block)
        table = self._tables([[range(first, first + block)], [range(len(sink))]], grid)
        common = KVBuffer(len(sink) + block, shared=True), KVBuffer(len(sink) + block, shared=True)

        def sunken(layer: WanKVLayerCache, kind: int) -> Iterator[Piece]:
            if sink:
                yield Piece([views[kind][row : row + 1] for views in layer.pages.views(sink)], slice(None), 0)

        alone = []
        for layer in self.cache.layers:
            alone.append(WanKVLayerCache(layer.pages, common))
            alone[-1].keeps_fresh = True
            alone[-1].set_context(
                lambda kind, layer=layer: sunken(layer, kind),  # type: ignore[misc]
                table[:, block * tokens :],
                frames=len(sink),
                tokens=tokens,
                block=block * tokens,
                hidden=slice(0, 0),
            )
        own = table[0, : block * tokens][None]
        text = self._prompts[prompt].row(row)
        self.backbone.store_keys(latents, self._timestep, caches=alone, prompt=text, table=own)
        for buffer in common:
            buffer.free()
        fresh = [layer.fresh for layer in alone[self.cache.unread :] if layer.fresh is not None]
        return [(keys[0].unflatten(0, (block, -1)), values[0].unflatten(0, (block, -1))) for keys, values in fresh]

    def close(self) -> None:
        """Free what the video held."""
        if self.graphs is not None:
            self.graphs.clear()
        self.cache.close()
        self._prompts, self._table = {}, None
        self._recent_tables.clear()

    def _tables(self, parts: Sequence[Sequence[Sequence[float]]], grid: tuple[int, int]) -> Tensor:
        """Rotary angles [N, F * rows * columns, 1, D/2, 2] of frames at the times of ``parts`` [1 or N][f], in order.

        They are on the device. The times of a context repeat from block to block, so the last tables are kept.
        """
        key = (tuple(tuple(map(tuple, part)) for part in parts), grid)
        kept = self._recent_tables
        if key not in kept:
            times = [torch.tensor([[*row] for row in part], dtype=torch.float64) for part in parts if part and part[0]]
            tables = [self.backbone.rotary.table(part, height=grid[0], width=grid[1]) for part in times]
            rows = max(map(len, tables))
            table = torch.cat([part.expand(rows, *part.shape[1:]) for part in tables], dim=1)
            kept[key] = to_device(table, self.device)
            if len(kept) > TABLES:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]
