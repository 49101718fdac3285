"""Training an autoregressive backbone in parallel over all blocks of a clip.

A clip is a list of *rows*, each one block of frames: first the clean rows, whose keys and values are what memory holds,
then noisy ones, which are denoised. In each layer, the queries of a row attend to the row's own keys and to the keys of
the clean frames of its context, at the rotary times of that context: exactly what the block attends to when it is
generated. A frame may be in several clean rows, as it is in memory under one prompt and later under another.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
class Row:
    """What one block attends to: clean frames, counted through the clean rows, and the rotary time of each.

    The block's own times count up from ``start_time``. Only its frames ``own``, counted from its first, are attended to
    by the block itself; None: all.
    """

    frames: tuple[int, ...]
    times: tuple[float, ...]
    start_time: int
    own: range | None = None


@dataclass(frozen=True)
class Layout:
    """The rows of B clips, R each of T frames, padded to one count N of frames in their contexts.

    frames, times and seen are [B, R, N]; own_times and own_seen [B, R, T].
    """

    frames: Tensor
    times: Tensor
    seen: Tensor
    own_times: Tensor
    own_seen: Tensor


def lay_out(clips: Sequence[Sequence[Row]], *, block: int) -> Layout:
    """Pack the rows of B clips, equally many of each."""
    most = max(len(row.frames) for clip in clips for row in clip)
    shape = (len(clips), len(clips[0]), most)
    frames, times = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.float64)
    seen = torch.zeros(shape, dtype=torch.bool)
    own_times = torch.zeros(*shape[:2], block, dtype=torch.float64)
    own_seen = torch.ones(*shape[:2], block, dtype=torch.bool)
    for number, clip in enumerate(clips):
        for index, row in enumerate(clip):
            count = len(row.frames)
            frames[number, index, :count] = torch.tensor(row.frames, dtype=torch.long)
            times[number, index, :count] = torch.tensor(row.times, dtype=torch.float64)
            seen[number, index, :count] = True
            own_times[number, index] = torch.arange(row.start_time, row.start_time + block)
            if row.own is not None:
                own_seen[number, index] = torch.tensor([offset in row.own for offset in range(block)])
    return Layout(frames, times, seen, own_times, own_seen)


def row_of(context: Context) -> Row:
    """The row of a block in a clip whose clean rows are all of its blocks, in order."""
    chosen, chosen_times = (context.retrieved[0], context.retrieved_times[0]) if context.retrieved else ((), ())
    return Row((*context.shared, *chosen), (*context.shared_times, *chosen_times), context.start_time)


def native_contexts(rng: random.Random, frames: int, *, block: int, window: int, sink: int) -> list[Context]:
    """The sliding window's context for each block of a clip, as if early or late in a video."""
    late = rng.choice((0, 0, rng.randrange(300)))
    contexts = []
    for start in range(0, frames // block * block, block):
        plain = sliding_window(start=start, block=block, window=window, sink=sink)
        shift = late if start >= window else 0  # by then the window has left the sink behind
        times = tuple(
            time if frame < sink else time + shift for frame, time in zip(plain.shared, plain.shared_times, strict=True)
        )
        contexts.append(Context(plain.shared, times, start + shift))
    return contexts


def random_contexts(
    rng: random.Random, keys: Tensor, *, block: int, window: int, sink: int, retrieved: int, guard: int
) -> list[Context]:
    """A context with retrieved frames for each block of a clip with unit-norm ``keys`` [F, D], all by one random rule.

    The rule is retrieval of the frames most similar to the newest one, as the engine does, or of random old frames.
    """
    blocks = len(keys) // block
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
    """Self-attention over rows (clip, row); rows attend to the first, clean ones of their clip."""

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
        """Output [B*R, T*tokens, dim] for input of the same shape."""
        forced = self.forced
        assert rotary_emb is not None and forced.layout is not None
        heads = (attn.heads, -1)
        query = rotate(attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads), rotary_emb)
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, heads)  # [B*R, T*tokens, heads, D]
        value = attn.to_v(hidden_states).unflatten(2, heads)
        keys, values = rotate(key, rotary_emb), value
        frames = forced.layout.frames
        if frames.shape[2]:
            clips = torch.arange(len(frames))[:, None, None]
            past = []
            for part in (key, value):
                clean = part.unflatten(0, frames.shape[:2])[:, : forced.clean]  # [B, clean, T*tokens, heads, D]
                pages = clean.unflatten(2, (-1, forced.tokens)).flatten(1, 2)  # [B, frames, tokens, heads, D]
                past.append(pages[clips, frames].flatten(2, 3).flatten(0, 1))  # [B*R, N*tokens, heads, D]
            assert forced.tables is not None
            keys = torch.cat((keys, rotate(past[0], forced.tables)), dim=1)
            values = torch.cat((values, past[1]), dim=1)
        attended = dispatch_attention_fn(query, keys, values, attn_mask=forced.mask).flatten(2, 3)
        output: Tensor = attn.to_out[0](attended)
        return output


class RowCrossAttention:
    """Cross-attention of rows to prompts [B*P, text, dim]: one for all rows of a clip (P = 1), or one for each row."""

    def __init__(self, forced: TeacherForced) -> None:
        self.forced = forced

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
    ) -> Tensor:
        """Output [B*R, L, dim] for input of the same shape."""
        chosen = self.forced.prompt_rows
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(encoder_hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(encoder_hidden_states).unflatten(2, (attn.heads, -1))
        if chosen is None:
            together = query.unflatten(0, (len(key), -1)).flatten(1, 2)  # [B, R*L, heads, D]
            attended = dispatch_attention_fn(together, key, value)
        else:
            attended = dispatch_attention_fn(query, key[chosen], value[chosen])
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
        self.prompt_rows: Tensor | None = None  # [B*R], of all B*P prompts
        self.clean = 0
        self.tokens = 0
        self._own: Tensor | None = None
        transformer.rope = _BatchRotary(self)
        for block in transformer.blocks:
            block.attn1.set_processor(TeacherForcedSelfAttention(self))
            block.attn2.set_processor(RowCrossAttention(self))

    def forward(
        self,
        rows: Tensor,
        timesteps: Tensor,
        prompts: Tensor,
        layout: Layout,
        *,
        clean: int,
        prompt_of: Tensor | None = None,
    ) -> Tensor:
        """Flow [B, R, T, C, H, W] of rows of that shape, the first ``clean`` of each clip clean, at timesteps [B, R].

        ``prompts`` are [B, text, D], or [B, P, text, D] with the number [B, R] of each row's prompt.
        """
        height, width = rows.shape[4:]
        patch = self.patch_size
        size = {"height": height // patch[1], "width": width // patch[2]}
        self.layout, self.clean, self.tokens = layout, clean, size["height"] * size["width"]
        self._own = self.rotary.table(layout.own_times, **size).flatten(0, 1)  # [B*R, T*tokens, 1, D/2, 2]
        self.tables = self.rotary.table(layout.times, **size).flatten(0, 1)
        seen = torch.cat((layout.own_seen, layout.seen), dim=2).flatten(0, 1)
        mask = seen.repeat_interleave(self.tokens, dim=1)[:, None, None]  # [B*R, 1, 1, keys]
        self.mask = None if mask.all() else mask
        self.prompt_rows = None
        if prompt_of is not None:
            first = prompts.shape[1] * torch.arange(len(prompts))[:, None]
            self.prompt_rows, prompts = (first + prompt_of).flatten(), prompts.flatten(0, 1)
        packed = rows.flatten(0, 1).transpose(1, 2)  # [B*R, C, T, H, W]
        flow = self.transformer(packed, timestep=timesteps.flatten(), encoder_hidden_states=prompts, return_dict=False)
        result: Tensor = flow[0].transpose(1, 2).unflatten(0, rows.shape[:2])
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
