"""What the backbone trains on: blocks in the contexts that they have in a rollout."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.memory.history import average_pool
from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.training.embedded.dataset import LatentClips
from llrag_cli.training.embedded.scene_clips import SceneClips, return_caption, switch_captions
from llrag_cli.training.embedded.scene_contexts import NO_PROMPT, SceneRow, cut_rows, memory_of, switch_rows
from llrag_cli.training.embedded.teacher_forcing import (
    Layout,
    Row,
    lay_out,
    native_contexts,
    random_contexts,
    row_of,
)
from llrag_cli.world.sprites import Scene, caption

BLOCK, WINDOW, SINK, RETRIEVED, GUARD = 3, 12, 1, 4, 2  # as in presets/tiny.yaml
PLAIN = 0.4  # share of clips by the plain window
NOISY_STREAMS = 2
SWITCH_COPIES = (4, 2, 1, 1)  # noisy copies of the blocks after a switch: its first blocks show what was learned
CUT_COPIES = ((1, 1, 0), (4, 2, 1, 1))  # of the second and the third shot
SCENE_ROWS = 18  # about, of a clip
TURNS = ("opening", "clip")  # what the steps train on, in turns
TURNS_WITH_SCENES = ("opening", "clip", "opening", "scenes", "clip")


@dataclass(frozen=True)
class Batch:
    """Rows of clips, ready to be trained on; clean latents and coverage by shape are [B, R, T, ...].

    The first ``clean`` rows of a clip are its memory, the others are denoised. ``prompts`` are ids [B, P, length] and
    ``prompt_of`` [B, R] says whose prompt a row follows; None: the only one.
    """

    latents: Tensor
    shapes: Tensor
    prompts: Tensor
    layout: Layout
    clean: int
    prompt_of: Tensor | None = None


def opening_batch(data: LatentClips, chosen: Tensor, text: TinyText, rng: random.Random) -> Batch:
    """Blocks that open a video: without a past, the prompt is the only information."""
    prompts = prompt_ids(text, [data.scenes[i] for i in chosen.tolist()], rng)
    layout = lay_out([[Row((), (), 0)]] * len(chosen), block=BLOCK)
    latents, shapes = data.latents[chosen].float(), data.shapes[chosen].float() / 255
    return Batch(latents[:, None], shapes[:, None], prompts[:, None], layout, clean=0)


def clip_batch(data: LatentClips, chosen: Tensor, text: TinyText, rng: random.Random, *, native: bool = False) -> Batch:
    """Whole clips under one prompt, each by one memory strategy; every block is denoised in ``NOISY_STREAMS`` rows.

    If ``native`` they are all by the sliding window.
    """
    prompts = prompt_ids(text, [data.scenes[i] for i in chosen.tolist()], rng)
    latents = data.latents[chosen].float()
    keys = F.normalize(average_pool(latents.flatten(0, 1)), dim=-1).unflatten(0, latents.shape[:2])
    retrieved = rng.choice((RETRIEVED, RETRIEVED, 6))
    clips = [
        [row_of(context) for context in contexts] * (1 + NOISY_STREAMS)
        for contexts in (
            native_contexts(rng, len(key), block=BLOCK, window=WINDOW, sink=SINK)
            if native or rng.random() < PLAIN
            else random_contexts(rng, key, block=BLOCK, window=WINDOW, sink=SINK, retrieved=retrieved, guard=GUARD)
            for key in keys
        )
    ]
    blocks = latents.shape[1] // BLOCK
    shapes = data.shapes[chosen].float() / 255
    return Batch(
        latents.unflatten(1, (blocks, BLOCK)).repeat(1, 1 + NOISY_STREAMS, *(1,) * 4),
        shapes.unflatten(1, (blocks, BLOCK)).repeat(1, 1 + NOISY_STREAMS, *(1,) * 4),
        prompts[:, None],
        lay_out(clips, block=BLOCK),
        clean=blocks,
    )


def scene_batch(data: SceneClips, chosen: Tensor, text: TinyText, rng: random.Random, *, native: bool = False) -> Batch:
    """Clips with a switch or with cuts; the blocks after them are denoised. If ``native`` nothing is retrieved."""
    latents, shapes = data.latents[chosen].float(), data.shapes[chosen].float() / 255
    keys = F.normalize(average_pool(latents.flatten(0, 1)), dim=-1).unflatten(0, latents.shape[:2])
    memory = memory_of(retrieved=0 if native else rng.choice((0, RETRIEVED, RETRIEVED, 6)))
    clips: list[tuple[list[SceneRow], list[SceneRow]]] = []
    texts: list[tuple[str, ...]] = []
    for number, key in zip(chosen.tolist(), keys, strict=True):
        scenes, change = data.scenes[number], data.changes[number]
        if data.kind == "switch":
            texts.append((*switch_captions(scenes[0], scenes[1], change, rng), ""))
            rows = switch_rows(rng, key, shots=data.shots, block=BLOCK, memory=memory, copies=SWITCH_COPIES)
        else:
            first, other = (caption(scene, rng, keep=rng.choice((1.0, 1.0, 0.6))) for scene in scenes[:2])
            texts.append((first, other, return_caption(scenes[2], change, rng), ""))
            rows = cut_rows(rng, key, shots=data.shots, block=BLOCK, memory=memory, change=change, copies=CUT_COPIES)
        clips.append((rows.clean, rows.noisy))
    return pack(latents, shapes, clips, texts, text)


def pack(
    latents: Tensor,
    shapes: Tensor,
    clips: Sequence[tuple[list[SceneRow], list[SceneRow]]],
    texts: Sequence[Sequence[str]],
    text: TinyText,
) -> Batch:
    """Clean and noisy rows of clips [B, F, ...] with the texts that their prompts count; the last is the empty one."""
    starts = torch.tensor([[row.start for row in (*clean, *noisy)] for clean, noisy in clips])  # [B, R]
    frames = starts[..., None] + torch.arange(BLOCK)  # [B, R, T]
    which = torch.arange(len(latents))[:, None, None]
    count = len(texts[0])
    prompt_of = torch.tensor([[row.prompt % count for row in (*clean, *noisy)] for clean, noisy in clips])
    assert NO_PROMPT % count == count - 1  # the last text is the empty one
    ids = torch.stack([text.pad([tokenize(line, limit=text.config.length)[0] for line in lines]) for lines in texts])
    layout = lay_out([[row.row for row in (*clean, *noisy)] for clean, noisy in clips], block=BLOCK)
    return Batch(latents[which, frames], shapes[which, frames], ids, layout, len(clips[0][0]), prompt_of)


class Deck:
    """Numbers below a count, in random order, each once before any comes again."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self._left = torch.empty(0, dtype=torch.long)

    def draw(self, size: int) -> Tensor:
        """The next ``size`` numbers."""
        if len(self._left) < size:
            self._left = torch.randperm(self.count, generator=self.generator)
        drawn, self._left = self._left[:size], self._left[size:]
        return drawn


class Lessons:
    """What each step trains on: ``batch`` whole clips, or about as many tokens of opening blocks or of ``scenes``.

    For an opening block the prompt is the only information. If ``native``, contexts are those of the sliding window.
    """

    def __init__(
        self,
        clips: LatentClips,
        openings: LatentClips,
        scenes: Sequence[SceneClips],
        *,
        batch: int,
        generator: torch.Generator,
        native: bool = False,
    ) -> None:
        self.native = native
        self.clips, self.openings, self.scenes, self.batch = clips, openings, scenes, batch
        self._rows = batch * (1 + NOISY_STREAMS) * clips.latents.shape[1] // BLOCK  # of a step
        every: list[LatentClips | SceneClips] = [clips, openings, *scenes]
        self._decks = {id(data): Deck(len(data.latents), generator) for data in every}

    def draw(self, step: int, text: TinyText, rng: random.Random) -> tuple[str, Batch]:
        """The batch of a step, and what it is called."""
        turns = TURNS_WITH_SCENES if self.scenes else TURNS
        turn = turns[step % len(turns)]
        if turn == "scenes":
            scenes = self.scenes[step // len(turns) % len(self.scenes)]
            chosen = self._chosen(scenes, max(1, self._rows // SCENE_ROWS))
            return scenes.kind, scene_batch(scenes, chosen, text, rng, native=self.native)
        if turn == "opening":
            return turn, opening_batch(self.openings, self._chosen(self.openings, self._rows), text, rng)
        return turn, clip_batch(self.clips, self._chosen(self.clips, self.batch), text, rng, native=self.native)

    def _chosen(self, data: LatentClips | SceneClips, size: int) -> Tensor:
        return self._decks[id(data)].draw(size)


def prompt_ids(text: TinyText, scenes: list[Scene], rng: random.Random) -> Tensor:
    """Captions as ids [B, length]: mostly full, often partial, sometimes empty."""
    captions = []
    for scene in scenes:
        kind = rng.random()
        captions.append("" if kind < 0.1 else caption(scene, rng, keep=1.0 if kind < 0.65 else 0.6))
    return text.pad([tokenize(words, limit=text.config.length)[0] for words in captions])
