"""Training an autoregressive backbone in parallel over all blocks of a clip.

Every clip runs as one clean stream and several noisy ones. In each layer, the queries of a block in any stream
attend to the block's own keys and to the clean keys of its context, at the rotary times of that context: exactly
what the block attends to when it is generated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from llrag_cli.cache.context import Context
from llrag_cli.cache.rotary import RotaryTables, rotate
from llrag_cli.memory.candidates import cosine_similarities, top
from llrag_cli.memory.context import retrievable, retrieval_window, sliding_window


@dataclass(frozen=True)
class Layout:
    """The clean frames that each block of each clip attends to, padded to one count N.

    frames, times and seen are [B, n, N]; own_times is [B, n, T] for the n blocks of T frames.
    """

    frames: Tensor
    times: Tensor
    seen: Tensor
    own_times: Tensor


def lay_out(contexts: list[list[Context]], *, block: int) -> Layout:
    """Pack the contexts of B clips of n blocks."""
    most = max(1, max(context.frame_count for clip in contexts for context in clip))
    shape = (len(contexts), len(contexts[0]), most)
    frames, times = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.float64)
    seen = torch.zeros(shape, dtype=torch.bool)
    own = torch.zeros(*shape[:2], block, dtype=torch.float64)
    for row, clip in enumerate(contexts):
        for index, context in enumerate(clip):
            chosen = (*context.shared, *(context.retrieved[0] if context.retrieved else ()))
            at = (*context.shared_times, *(context.retrieved_time,) * context.retrieved_count)
            frames[row, index, : len(chosen)] = torch.tensor(chosen, dtype=torch.long)
            times[row, index, : len(chosen)] = torch.tensor(at, dtype=torch.float64)
            seen[row, index, : len(chosen)] = True
            own[row, index] = torch.arange(context.start_time, context.start_time + block)
    return Layout(frames, times, seen, own)


def random_contexts(
    rng: random.Random, keys: Tensor, *, block: int, window: int, sink: int, retrieved: int, guard: int
) -> list[Context]:
    """A context for each block of a clip with unit-norm ``keys`` [F, D], all by one random strategy.

    The strategy is the plain window, as if early or late in a video; or retrieval of the frames most similar to the
    newest one, as the engine does; or retrieval of random old frames.
    """
    blocks = len(keys) // block
    if rng.random() < 0.4:
        late = rng.choice((0, 0, rng.randrange(300)))
        contexts = []
        for start in range(0, blocks * block, block):
            plain = sliding_window(start=start, block=block, window=window, sink=sink)
            shift = late if start >= window else 0  # by then the window has left the sink behind
            times = tuple(
                time if frame < sink else time + shift
                for frame, time in zip(plain.shared, plain.shared_times, strict=True)
            )
            contexts.append(Context(plain.shared, times, start + shift))
        return contexts
    alike = rng.random() < 0.6
    local = window - sink - retrieved
    contexts = []
    for start in range(0, blocks * block, block):
        old = range(sink, max(sink, start + block - local))
        candidates = retrievable(start=start, window=window, sink=sink, guard=guard)
        if alike and candidates:
            pool = keys[None, candidates.start : candidates.stop]
            positions, _ = top(cosine_similarities(keys[None, start - 1], pool), retrieved)
            rows = (positions + candidates.start).tolist()
        else:
            count = min(len(old), rng.choice((retrieved, retrieved, rng.randint(0, retrieved))))
            rows = [rng.sample(old, count)] if count else []
        contexts.append(
            retrieval_window(start=start, block=block, window=window, sink=sink, count=retrieved, retrieved=rows)
        )
    return contexts


class TeacherForcedSelfAttention:
    """Self-attention over rows (clip, stream, block); the first stream is clean, and all streams attend to it."""

    def __init__(self, forced: TeacherForced) -> None:
        self.forced = forced

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B*S*n, T*tokens, dim] for input of the same shape."""
        forced = self.forced
        assert rotary_emb is not None and forced.tables is not None and forced.layout is not None
        clips, streams, blocks = forced.shape
        heads = (attn.heads, -1)
        query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), rotary_emb)
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads)  # [B*S*n, T*tokens, heads, D]
        value = attn.to_v(hidden_states).unflatten(2, heads)
        rows = torch.arange(clips)[:, None, None]
        past = []
        for part in (key, value):
            clean = part.unflatten(0, forced.shape)[:, 0]  # [B, n, T*tokens, heads, D]
            pages = clean.unflatten(2, (-1, forced.tokens)).flatten(1, 2)  # [B, frames, tokens, heads, D]
            past.append(pages[rows, forced.layout.frames].flatten(2, 3).flatten(0, 1))  # [B*n, N*tokens, heads, D]
        past[0] = rotate(past[0], forced.tables)
        spread = [
            p.unflatten(0, (clips, 1, blocks)).expand(clips, streams, blocks, *p.shape[1:]).flatten(0, 2) for p in past
        ]
        keys = torch.cat((rotate(key, rotary_emb), spread[0]), dim=1)
        values = torch.cat((value, spread[1]), dim=1)
        attended = dispatch_attention_fn(query, keys, values, attn_mask=forced.mask).flatten(2, 3)
        output: Tensor = attn.to_out[0](attended)
        return output


class SharedCrossAttention:
    """Cross-attention of all streams and blocks of a clip to its prompt, [B, text, dim]."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B*S*n, L, dim] for input of the same shape."""
        clips, heads = encoder_hidden_states.shape[0], (attn.heads, -1)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads)
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, heads)
        value = attn.to_v(encoder_hidden_states).unflatten(2, heads)
        together = query.unflatten(0, (clips, -1)).flatten(1, 2)  # [B, S*n*L, heads, D]
        attended = dispatch_attention_fn(together, key, value)
        output: Tensor = attn.to_out[0](attended.reshape(query.shape).flatten(2, 3))
        return output


class TeacherForced(nn.Module):
    """A Wan transformer set up for teacher forcing; its parameters are the transformer's own."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.patch_size: tuple[int, int, int] = tuple(transformer.config.patch_size)
        self.rotary = RotaryTables(transformer.config.attention_head_dim)
        self.layout: Layout | None = None
        self.tables: Tensor | None = None
        self.mask: Tensor | None = None
        self.shape = (1, 1, 1)
        self.tokens = 0
        self._own: Tensor | None = None
        transformer.rope = _BatchRotary(self)
        for block in transformer.blocks:
            block.attn1.set_processor(TeacherForcedSelfAttention(self))
            block.attn2.set_processor(SharedCrossAttention())

    def forward(self, streams: Tensor, timesteps: Tensor, prompt: Tensor, layout: Layout) -> Tensor:
        """Flow [B, S, F, C, H, W] of streams of that shape at timesteps [B, S, n], for prompts [B, text, D]."""
        clips, count, _, _, height, width = streams.shape
        blocks, block = layout.own_times.shape[1:]
        patch = self.patch_size
        rows, columns = height // patch[1], width // patch[2]
        self.layout, self.shape, self.tokens = layout, (clips, count, blocks), rows * columns
        own = self.rotary.table(layout.own_times, height=rows, width=columns)  # [B, n, T*tokens, 1, D/2, 2]
        self._own = own[:, None].expand(-1, count, *own.shape[1:]).flatten(0, 2)
        self.tables = self.rotary.table(layout.times, height=rows, width=columns).flatten(0, 1)
        seen = layout.seen[:, None].expand(-1, count, -1, -1).flatten(0, 2)  # [B*S*n, N]
        seen = seen.repeat_interleave(self.tokens, dim=1)
        itself = torch.ones(len(seen), block * self.tokens, dtype=torch.bool)
        self.mask = torch.cat((itself, seen), dim=1)[:, None, None]  # [B*S*n, 1, 1, keys]
        packed = streams.unflatten(2, (blocks, block)).flatten(0, 2).transpose(1, 2)  # [B*S*n, C, T, H, W]
        flow = self.transformer(packed, timestep=timesteps.flatten(), encoder_hidden_states=prompt, return_dict=False)[
            0
        ]
        result: Tensor = flow.transpose(1, 2).unflatten(0, (clips, count, blocks)).flatten(2, 3)
        return result


class _BatchRotary(nn.Module):
    """Passes the rotary table that ``TeacherForced`` computed for the batch to the transformer."""

    def __init__(self, forced: TeacherForced) -> None:
        super().__init__()
        self._forced = (forced,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, hidden_states: Tensor) -> Tensor:
        own = self._forced[0]._own
        assert own is not None
        return own
