"""diffusers' ``WanTransformer3DModel`` as an autoregressive backbone.

The class is unmodified. On the instance, four small modules are exchanged: the rotary embedding (by one
that is told frame times), the timestep sinusoid (by one in float64, as the original computes it), and
the attention processors (self-attention reads and writes the cache; cross-attention keeps the prompt's
keys and values).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from llrag_cli.cache.kv import WanKVCache, WanKVLayerCache
from llrag_cli.cache.pages import LayerKV
from llrag_cli.cache.rotary import FrameRotary, rotate
from llrag_cli.memory.context import Context


class Timesteps64(nn.Module):
    """Sinusoids of a timestep, angles in float64: cosines first, then sines."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def forward(self, timesteps: Tensor) -> Tensor:
        """float64 embeddings [N, channels] of timesteps [N] in 0..1000."""
        angles = timesteps.double()[:, None] * self.frequencies.to(timesteps.device)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class LastKeysStored(Exception):  # noqa: N818 - a signal, not an error
    """Raised inside the last layer of a clean pass: all it is run for has been stored by then."""


class CachedSelfAttention:
    """Attention of the block's tokens to themselves and to the context in the layer's cache."""

    def __init__(self) -> None:
        self.cache: WanKVLayerCache | None = None
        self.stop_once_stored = False
        self.backend: Any = None  # of diffusers' list; None is its default

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B, L, dim] for modulated input [B, L, dim]; rotary_emb is the table of ``FrameRotary``."""
        assert self.cache is not None and rotary_emb is not None
        heads = (attn.heads, -1)
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads)
        value = attn.to_v(hidden_states).unflatten(2, heads)
        keys, values = self.cache.store(key, value, rotary_emb)
        if self.stop_once_stored:
            raise LastKeysStored
        query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), rotary_emb)
        attended = dispatch_attention_fn(query, keys, values, backend=self.backend)
        attended = attended.flatten(2, 3).type_as(query)
        output: Tensor = attn.to_out[0](attended)
        return output


class PromptCrossAttention:
    """Attention to the prompt, whose keys and values [B, text, heads, D] are computed once."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.backend: Any = None

    def read(self, attn: Any, text: Tensor) -> None:
        """Take in the embedded prompt [B, text, dim]."""
        heads = (attn.heads, -1)
        self.keys = attn.norm_k(attn.to_k(text)).unflatten(2, heads)
        self.values = attn.to_v(text).unflatten(2, heads)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B, L, dim] for input [B, L, dim]; the text comes from ``read``."""
        assert self.keys is not None and self.values is not None
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        attended = dispatch_attention_fn(query, self.keys, self.values, backend=self.backend)
        attended = attended.flatten(2, 3).type_as(query)
        output: Tensor = attn.to_out[0](attended)
        return output


class WanBackbone:
    """A frozen Wan transformer that writes videos block by block.

    Latents are [B, T, C, H, W] at its door. ``begin`` a video, then for each block: ``attend`` to a
    context, predict the ``flow`` as often as the sampler asks, ``remember`` the finished latents.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        config = transformer.config
        self.transformer = transformer.eval().requires_grad_(requires_grad=False)
        self.patch_size: tuple[int, int, int] = tuple(config.patch_size)
        self.channels: int = config.in_channels
        self.rotary = FrameRotary(config.attention_head_dim, self.patch_size)
        transformer.rope = self.rotary
        transformer.condition_embedder.timesteps_proj = Timesteps64(config.freq_dim)
        self._self_attention = [CachedSelfAttention() for _ in transformer.blocks]
        self._cross_attention = [PromptCrossAttention() for _ in transformer.blocks]
        for block, own, cross in zip(transformer.blocks, self._self_attention, self._cross_attention, strict=True):
            block.attn1.set_processor(own)
            block.attn2.set_processor(cross)
        self._cache: WanKVCache | None = None
        self._text: Tensor | None = None
        self._start = 0
        self._timestep = 0.0
        self._device: torch.device | None = None
        self._stops_early = True

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._device or self.transformer.patch_embedding.weight.device
        return device

    def offloaded_from(self, device: torch.device) -> None:
        """Compute on a device though the weights rest elsewhere."""
        self._device = device
        self._stops_early = False  # a pass that ends half way would leave the offloading half way

    def use_attention(self, name: str) -> None:
        """Compute attention with one of diffusers' back ends; raises what it raises when it is tried once."""
        backend = AttentionBackendName(name)
        head = self.transformer.config.attention_head_dim
        trial = torch.zeros(1, 2, 1, head, device=self.device, dtype=self.dtype)
        dispatch_attention_fn(trial, trial, trial, backend=backend)
        for own, cross in zip(self._self_attention, self._cross_attention, strict=True):
            own.backend = cross.backend = backend

    def compile(self) -> None:
        """Compile the block that all layers repeat; the first passes of each new context length take long."""
        self.transformer.compile_repeated_blocks(dynamic=False)
        self._stops_early = False  # an exception is no way out of a compiled block

    @property
    def dtype(self) -> torch.dtype:
        """What latents and activations are computed in."""
        dtype: torch.dtype = self.transformer.patch_embedding.weight.dtype
        return dtype

    @property
    def layers(self) -> int:
        """Transformer layers, each with a cache of its own."""
        return len(self._self_attention)

    def tokens(self, height: int, width: int) -> int:
        """Tokens of a latent frame of a size in latent pixels."""
        return (height // self.patch_size[1]) * (width // self.patch_size[2])

    @torch.no_grad()
    def begin(self, prompt: Tensor, cache: WanKVCache) -> None:
        """Start a video: prompt embeddings [B, text, D_text] (zero rows after the words), an empty cache."""
        self.read(prompt)
        self._cache = cache
        self._use(cache.layers)

    @torch.no_grad()
    def read(self, prompt: Tensor) -> None:
        """Follow a prompt, given as for ``begin``, from the next block on."""
        prompt = prompt.to(self.device, self.dtype)
        text = self.transformer.condition_embedder.text_embedder(prompt)
        for block, cross in zip(self.transformer.blocks, self._cross_attention, strict=True):
            cross.read(block.attn2, text)
        self._text = prompt[:, :0]  # the keys and values are kept, so no pass needs the words again

    @torch.no_grad()
    def attend(self, context: Context, *, start: int, block: int, height: int, width: int) -> None:
        """Gather, once for all passes of the block at frames start .. start + block - 1, what it attends to."""
        assert self._cache is not None
        self._start = start
        rows, columns = height // self.patch_size[1], width // self.patch_size[2]
        times = []
        if context.shared:
            times.append(torch.tensor(context.shared_times, dtype=torch.float64))
        if context.recalled:
            self._cache.fetch(context.recalled, self.recompute)
            times.append(torch.full((context.recalled_count,), context.recalled_time, dtype=torch.float64))
        self.rotary.times = torch.arange(context.start_time, context.start_time + block, dtype=torch.float64)
        tables = [self.rotary.table(part, height=rows, width=columns)[None].to(self.device) for part in times]
        tokens = rows * columns
        hidden = slice(context.hidden.start * tokens, context.hidden.stop * tokens)
        shared = torch.tensor(context.shared)
        for index, layer in enumerate(self._cache.layers):
            found = [layer.pages.read(shared)] if context.shared else []
            if context.recalled:
                found.append(self._cache.recalled(index, context.recalled))
            layer.gather(found, tables, block=block * tokens, hidden=hidden)

    @torch.no_grad()
    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """Predicted flow (noise - clean) [B, T, C, H, W] of noisy latents at a timestep, a scalar in 0..1000."""
        steps = timestep.to(self.device).expand(noisy.shape[0])
        predicted: Tensor = self.transformer(
            noisy.transpose(1, 2),  # [B, C, T, H, W]
            timestep=steps,
            encoder_hidden_states=self._text,
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2)

    @torch.no_grad()
    def remember(self, latents: Tensor, timestep: float = 0.0, ahead: Sequence[Sequence[int]] = ()) -> None:
        """One clean pass over finished latents [B, T, C, H, W], for the keys and values it leaves.

        Frames ``ahead`` [B][K] are those the next block will recall: they are brought while the pass runs.
        """
        assert self._cache is not None
        self._timestep = timestep
        self._clean_pass(latents)
        if ahead and self._cache.archive is not None:
            self._cache.archive.expect([[frame for frame in row if frame < self._start] for row in ahead])
        self._cache.commit(self._start, latents, self.tokens(*latents.shape[3:]))

    @torch.no_grad()
    def recompute(self, row: int, start: int, latents: Tensor) -> list[LayerKV]:
        """Keys and values [T, tokens, heads, D] that an old block of video ``row`` leaves in each layer.

        One clean pass over its latents [1, T, C, H, W] of frames from ``start`` on, which see themselves and the sink.
        """
        assert self._cache is not None and self._cache.window is not None
        block = latents.shape[1]
        rows, columns = (size // patch for size, patch in zip(latents.shape[3:], self.patch_size[1:], strict=True))
        tokens = rows * columns
        sink = torch.arange(min(self._cache.sink, start))
        table = self.rotary.table(sink.double(), height=rows, width=columns)[None].to(self.device)
        alone = []
        for layer in self._cache.layers:
            sunk, seen = (part[row : row + 1] for part in layer.pages.read(sink))
            alone.append(WanKVLayerCache(layer.pages))
            alone[-1].gather([(sunk, seen)], [table], block=block * tokens, hidden=slice(0, 0))
        times, prompt = self.rotary.times, [(cross.keys, cross.values) for cross in self._cross_attention]
        first = min(start, self._cache.window - block)
        self.rotary.times = torch.arange(first, first + block, dtype=torch.float64)
        self._use(alone)
        for cross, (keys, values) in zip(self._cross_attention, prompt, strict=True):
            assert keys is not None and values is not None
            cross.keys, cross.values = keys[row : row + 1], values[row : row + 1]
        try:
            self._clean_pass(latents)
        finally:
            self.rotary.times = times
            self._use(self._cache.layers)
            for cross, (keys, values) in zip(self._cross_attention, prompt, strict=True):
                cross.keys, cross.values = keys, values
        made = [layer.fresh for layer in alone if layer.fresh is not None]
        return [(keys[0].unflatten(0, (block, -1)), values[0].unflatten(0, (block, -1))) for keys, values in made]

    def _clean_pass(self, latents: Tensor) -> None:
        """A pass for the keys and values it leaves in the caches."""
        last = self._self_attention[-1]
        last.stop_once_stored = self._stops_early
        try:
            self.flow(latents, torch.tensor(self._timestep))
        except LastKeysStored:
            pass
        finally:
            last.stop_once_stored = False

    def _use(self, layers: Sequence[WanKVLayerCache]) -> None:
        for attention, layer in zip(self._self_attention, layers, strict=True):
            attention.cache = layer
