"""The videos of a benchmark: backbones x memories x prompts x seeds, each as long as the longest horizon."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.memory.strategies import STRATEGIES
from llrag_cli.presets import load_config, require_strategy

SEED_STRIDE = 1000  # between the first seeds of prompts, so that no two videos share their noise


def memory_config(backbone: str | Path, memory: str, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration of a backbone with a memory strategy.

    Settings that only some strategies have, such as `memory.retrieved`, apply to those.
    """
    require_strategy(memory)
    own, known = STRATEGIES[memory].model_fields, {name for kind in STRATEGIES.values() for name in kind.model_fields}
    others = {f"memory.{name}" for name in known - own.keys()}
    applicable = [setting for setting in settings if setting.partition("=")[0].strip() not in others]
    return load_config(backbone, memory=memory, settings=applicable)


def memory_title(memory: str) -> str:
    """A memory strategy in headings."""
    return "none (sliding window)" if memory == "none" else memory


def folder_name(backbone: str) -> str:
    """The name of a backbone's folder: that of its preset or file, or one made from it if it has unusual characters.

    Two such names differ in their checksums.
    """
    name = Path(backbone).name.removesuffix(".yaml").removesuffix(".yml")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100]
    if plain and plain == name:
        return name
    return f"{plain or 'backbone'}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


@dataclass(frozen=True)
class Case:
    """One video of the benchmark."""

    backbone: str
    memory: str  # a memory strategy
    number: int  # of the prompt in its file
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        """Its run folder."""
        return root / "videos" / folder_name(self.backbone) / self.memory / f"{self.number:03d}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """All videos of a benchmark. A shorter horizon is the beginning of the same video."""

    backbones: tuple[str, ...]
    memories: tuple[str, ...]  # memory strategies; the first is the baseline
    horizons: tuple[float, ...]  # seconds, rising
    prompts: tuple[tuple[int, str], ...]
    seeds: tuple[int, ...]  # of the first prompt

    def cases(self) -> Iterator[Case]:
        """Every video; those of one backbone and memory follow each other."""
        axes = product(self.backbones, self.memories, self.prompts, self.seeds)
        for backbone, memory, (number, prompt), seed in axes:
            yield Case(backbone, memory, number, prompt, seed + SEED_STRIDE * (number - 1))

    @property
    def seconds(self) -> float:
        """Length of every video."""
        return max(self.horizons)

    @property
    def baseline(self) -> str:
        """The memory that the others are compared with."""
        return self.memories[0]


def horizon_frames(config: RunConfig, seconds: float) -> int:
    """Video frames of a horizon: as many as a video of this length has."""
    return config.video_frames(config.latent_frames(seconds))


def subset(prompts: Sequence[str], *, count: int | None, seed: int) -> tuple[tuple[int, str], ...]:
    """Prompts with their numbers from 1; with ``count``, a sample of that many, drawn with ``seed``."""
    numbered = tuple(enumerate(prompts, start=1))
    if count is None or count >= len(numbered):
        return numbered
    return tuple(sorted(random.Random(seed).sample(numbered, count)))
