"""What a benchmark makes: backbones x methods x prompts x seeds, each video as long as the longest horizon."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from llrag_cli.config import RECALLS, RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.presets import METHODS, load_config

SEEDS_APART = 1000  # between prompts: with one seed for all, they would share their noise, and what comes of it
NAMES = (*METHODS, *(recall for recall in RECALLS if recall != "nearest"))


def method_config(backbone: str | Path, method: str, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration of a method: native, retrieval, or retrieval with another memory policy.

    Of the settings of memory, native takes those of the window, so that all methods attend to as many frames.
    """
    if method not in NAMES:
        raise UsageError(f"there is no method `{method}`", hint=closest(method, NAMES))
    policy = [] if method in METHODS else [f"memory.recall={method}"]
    window = ("memory.window=", "memory.sink=")
    kept = [
        each for each in settings if method != "native" or not each.startswith("memory.") or each.startswith(window)
    ]
    return load_config(backbone, method="native" if method == "native" else "retrieval", settings=[*policy, *kept])


@dataclass(frozen=True)
class Cell:
    """One video: what it is made from, and where it goes."""

    backbone: str
    method: str
    number: int  # of the prompt in its file
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        """Its run folder."""
        return root / "videos" / self.backbone / self.method / f"{self.number:03d}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """All videos of a benchmark. A shorter horizon is the beginning of the same video."""

    backbones: tuple[str, ...]
    methods: tuple[str, ...]
    horizons: tuple[float, ...]  # seconds, rising
    prompts: tuple[tuple[int, str], ...]
    seeds: tuple[int, ...]  # of the first prompt

    def cells(self) -> Iterator[Cell]:
        """Every video; those of one backbone and method follow each other."""
        for backbone, method, (number, prompt), seed in product(self.backbones, self.methods, self.prompts, self.seeds):
            yield Cell(backbone, method, number, prompt, seed + SEEDS_APART * (number - 1))

    @property
    def seconds(self) -> float:
        """How long videos are made."""
        return max(self.horizons)


def horizon_frames(config: RunConfig, seconds: float) -> int:
    """Video frames of a horizon, as `llrag generate --seconds` would write them."""
    return config.video_frames(config.latent_frames(seconds))


def subset(prompts: Sequence[str], *, count: int | None, seed: int) -> tuple[tuple[int, str], ...]:
    """Prompts with their numbers from 1; ``count`` of them drawn with a seed, where given."""
    numbered = tuple(enumerate(prompts, start=1))
    if count is None or count >= len(numbered):
        return numbered
    return tuple(sorted(random.Random(seed).sample(numbered, count)))
