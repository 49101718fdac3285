"""The videos of a benchmark: backbones x memories x prompts x seeds, each as long as the longest horizon.

A memory is a *variant*: a strategy as it is, or with settings or an encoder of its own. Importing this does not import
torch.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.guarded import shortened
from llrag_cli.memory.strategies import STRATEGIES
from llrag_cli.presets import load_config, require_strategy

SEED_STRIDE = 1000  # between the first seeds of prompts, so that no two videos share their noise


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # of a variant


@dataclass(frozen=True)
class Variant:
    """A memory that is compared: a strategy, or that of the preset, and settings of its own."""

    name: str
    strategy: str | None = None  # None: the preset's
    settings: tuple[str, ...] = ()

    def config(self, backbone: str | Path, settings: Sequence[str] = ()) -> RunConfig:
        """The configuration of a backbone with this memory.

        Of the ``settings`` that all variants share, those that only some strategies have, such as
        ``memory.retrieved``, apply to those; the variant's own come after them.
        """
        strategy = _named_strategy(self.settings) or self.strategy
        kind = type(load_config(backbone, memory=strategy).memory)
        others = {f"memory.{name}" for each in STRATEGIES.values() for name in each.model_fields} - {
            f"memory.{name}" for name in kind.model_fields
        }
        shared = [setting for setting in settings if _parted(setting)[0] not in others]
        return load_config(backbone, memory=strategy, settings=[*shared, *self.settings])


def _parted(setting: str) -> tuple[str, str, str]:
    key, equals, value = setting.partition("=")
    return key.strip(), equals, value.strip()


def _named_strategy(settings: Sequence[str]) -> str | None:
    """The strategy that settings choose; None if they choose none."""
    named = [value for key, _, value in map(_parted, settings) if key == "memory.strategy"]
    return named[-1] if named else None


def strategy_variant(memory: str) -> Variant:
    """A memory strategy as it is, by its name; raises ``UsageError`` if there is none."""
    require_strategy(memory)
    return Variant(memory, memory)


def parse_variant(text: str) -> Variant:
    """``NAME=KEY=VALUE KEY=VALUE ...`` as a variant; raises ``UsageError``.

    It may have the name of the strategy that it uses, and of no other.
    """
    name, _, rest = text.partition("=")
    if not NAME.fullmatch(name := name.strip()):
        raise UsageError(
            f"a variant cannot be named `{shortened(name, 60)}`",
            hint='up to 40 letters, digits, `.`, `-`, `_`, for example `k2="memory.retrieved=2"`',
        )
    try:
        settings = shlex.split(rest)
    except ValueError as error:
        raise UsageError(
            f"the settings of the variant `{name}` cannot be read: {error}", hint="close the quotes"
        ) from None
    if not settings:
        raise UsageError(f"the variant `{name}` has no settings", hint='for example `k2="memory.retrieved=2"`')
    if name in STRATEGIES and _named_strategy(settings) != name:
        raise UsageError(
            f"a variant cannot be named `{name}`", hint="that is a memory strategy, and not its own; take another name"
        )
    return Variant(name, settings=tuple(settings))


def encoder_variant(text: str) -> Variant:
    """``NAME=FILE`` as a variant that looks frames up with a retrieval encoder of its own; raises ``UsageError``."""
    name, _, file = text.partition("=")
    variant = parse_variant(f"{name}=memory.keys=encoder")
    if not Path(file).is_file():
        raise UsageError(f"no such file: `{file}`", hint="a variant of the encoder is `NAME=FILE`")
    return replace(variant, settings=(*variant.settings, f"memory.encoder={json.dumps(str(Path(file).resolve()))}"))


def memory_title(name: str) -> str:
    """The name of a memory in headings."""
    return "none (sliding window)" if name == "none" else name


def backbone_folder(backbone: str) -> str:
    """The name of a backbone's folder, after its preset or file."""
    return folder_name(Path(backbone).name.removesuffix(".yaml").removesuffix(".yml"))


def folder_name(name: str) -> str:
    """A name as that of a folder: itself, or one made from it if it has unusual characters.

    Two such names differ in their checksums.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100]
    if plain and plain == name:
        return name
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]}"


@dataclass(frozen=True)
class Case:
    """One video of the benchmark."""

    backbone: str
    memory: str  # name of a variant
    number: int  # of the prompt in its file
    prompt: str
    seed: int

    def folder(self, root: Path) -> Path:
        """Its run folder."""
        place = root / "videos" / backbone_folder(self.backbone) / folder_name(self.memory)
        return place / f"{self.number:03d}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """All videos of a benchmark. A shorter horizon is the beginning of the same video."""

    backbones: tuple[str, ...]
    memories: tuple[Variant, ...]  # the first is the baseline
    horizons: tuple[float, ...]  # seconds, rising
    prompts: tuple[tuple[int, str], ...]
    seeds: tuple[int, ...]  # of the first prompt

    def cases(self) -> Iterator[Case]:
        """Every video; those of one backbone and memory follow each other."""
        axes = product(self.backbones, self.memories, self.prompts, self.seeds)
        for backbone, memory, (number, prompt), seed in axes:
            yield Case(backbone, memory.name, number, prompt, seed + SEED_STRIDE * (number - 1))

    @property
    def seconds(self) -> float:
        """Length of every video."""
        return max(self.horizons)

    @property
    def baseline(self) -> str:
        """The name of the memory that the others are compared with."""
        return self.memories[0].name

    def variant(self, name: str) -> Variant:
        """The memory of a name."""
        return next(memory for memory in self.memories if memory.name == name)


def horizon_frames(config: RunConfig, seconds: float) -> int:
    """Video frames of a horizon: as many as a video of this length has."""
    return config.video_frames(config.latent_frames(seconds))


def subset(prompts: Sequence[str], *, count: int | None, seed: int) -> tuple[tuple[int, str], ...]:
    """Prompts with their numbers from 1; with ``count``, a sample of that many, drawn with ``seed``."""
    numbered = tuple(enumerate(prompts, start=1))
    if count is None or count >= len(numbered):
        return numbered
    return tuple(sorted(random.Random(seed).sample(numbered, count)))
