"""Rollouts of a network that is being trained, as training data: it learns in contexts of its own making.

As in Self-Forcing (Huang et al. 2025) and LongLive (Yang et al. 2025): videos are generated as the engine does it, with
the sliding window, and each of their blocks is made again, with a gradient, in the context that it had.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from llrag_cli.engine.rollout import rollout
from llrag_cli.engine.shots import Change
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import SlidingWindow
from llrag_cli.models.embedded.model import LATENT, new_transformer
from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.embedded.lessons import BLOCK, SINK, WINDOW, Batch, pack
from llrag_cli.training.embedded.network import Network
from llrag_cli.training.embedded.scene_contexts import Rows, switch_rows
from llrag_cli.world.sprites import SHAPES, Scene, caption

MEMORY = SlidingWindow(window=WINDOW, sink=SINK)


class OwnRollouts:
    """Batches of a student's own videos; each set of them serves ``uses`` steps.

    ``videos`` of ``blocks`` blocks each, of which ``learned`` are made again; with ``switches`` the prompt changes in
    the middle, and the blocks after that are among those.
    """

    def __init__(
        self,
        student: Network,
        scenes: Sequence[Scene],
        schedule: FlowMatchSchedule,
        *,
        videos: int,
        blocks: int,
        learned: int,
        switches: bool = False,
        uses: int = 3,
    ) -> None:
        self.student, self.scenes, self.schedule = student, scenes, schedule
        self.videos, self.blocks, self.learned, self.switches, self.uses = videos, blocks, learned, switches, uses
        self._transformer = new_transformer()  # has the student's weights, and the engine's attention
        self._backbone = WanBackbone(self._transformer)
        self._texts: list[tuple[str, ...]] = []
        self._latents = torch.empty(0)
        self._switch = 0

    def draw(self, step: int, text: TinyText, rng: random.Random) -> tuple[str, Batch]:
        """The batch of a step, and what it is called."""
        if step % self.uses == 0:
            self._generate(rng)
        clips = []
        for _ in range(self.videos):
            rows = self._switch_rows(rng) if self.switches else native_rows(self.blocks, rng, self.learned)
            clips.append((rows.clean, rows.noisy))
        shapes = torch.zeros(*self._latents.shape[:2], len(SHAPES), *LATENT[1:])  # unknown, and not learned from
        batch = pack(self._latents, shapes, clips, [(*each, "") for each in self._texts], text)
        return "long rollouts" if self.switches else "rollouts", batch

    def _switch_rows(self, rng: random.Random) -> Rows:
        after = self.blocks - self._switch
        copies = [1] * min(after, self.learned) + [0] * max(0, after - self.learned)
        if after > self.learned:  # its first blocks, and any later ones
            copies = [1, 1, *(0,) * (after - 2)]
            for late in rng.sample(range(2, after), self.learned - 2):
                copies[late] = 1
        return switch_rows(
            rng,
            torch.empty(0),
            shots=(0, self._switch, self.blocks),
            block=BLOCK,
            memory=MEMORY,
            copies=copies,
            late=0,
        )

    @torch.no_grad()
    def _generate(self, rng: random.Random) -> None:
        """New videos of the student as it is now."""
        student = self.student.model["transformer"].state_dict()
        self._transformer.load_state_dict(student, strict=False)
        count = 2 if self.switches else 1
        self._texts = [
            tuple(caption(scene, rng, keep=rng.choice((1.0, 1.0, 0.6))) for scene in rng.sample(self.scenes, count))
            for _ in range(self.videos)
        ]
        # at a quarter to three quarters, so that the window before the switch is whole
        self._switch = rng.randint(self.blocks // 4, 3 * self.blocks // 4) if self.switches else self.blocks
        prompts = [embedded(self.student.text, [texts[number] for texts in self._texts]) for number in range(count)]
        seeds = [rng.getrandbits(40) for _ in range(self.videos)]
        changes = {self._switch: Change(prompts[1])} if self.switches else {}
        made = rollout(
            self._backbone,
            prompts[0],
            frames=self.blocks * BLOCK,
            shape=LATENT,
            block=BLOCK,
            schedule=self.schedule,
            memory=MEMORY,
            history=History(average_pool),
            noise=AddressedNoise(seeds, range(self.videos)),
            changes=changes,
        )
        self._latents = torch.cat([block.latents for block in made], dim=1)


def embedded(text: TinyText, prompts: Sequence[str]) -> Tensor:
    """Embeddings of prompts, without a gradient."""
    with torch.no_grad():
        rows: Tensor = text(text.pad([tokenize(prompt, limit=text.config.length)[0] for prompt in prompts]))
    return rows


def native_rows(blocks: int, rng: random.Random, learned: int) -> Rows:
    """Rows of a video under prompt 0 with the sliding window, of which ``learned`` blocks are denoised."""
    rows = Rows(BLOCK)
    chosen = set(rng.sample(range(blocks), min(learned, blocks)))
    for number in range(blocks):
        row = rows.windowed(MEMORY, number * BLOCK)
        if number in chosen:
            rows.denoise(number * BLOCK, 0, row, copies=1)
        rows.store(number * BLOCK, 0, row)
    return rows
