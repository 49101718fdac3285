"""What studies have in common before they begin: pools of scenes, and what is checked and written down.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.files.paths import weights_folder
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.embedded.family import FAMILY as EMBEDDED
from llrag_cli.models.family import family_of

Pool = Literal["search", "confirm", "search-2", "confirm-2"]
POOLS: tuple[Pool, ...] = ("search", "confirm")  # that every study has
RETURN_POOLS: tuple[Pool, ...] = get_args(Pool)  # of returning scenes: two pairs, each for one round of search
POOL_SIZE = 48  # scenes of each pool
SEED_STRIDE = 1000  # between scenes, so that no two share their noise
Key = tuple[int, int, str]  # scene from 1, its seed from 0, and the shot or condition


def require_pool(name: str, pools: tuple[Pool, ...] = POOLS) -> Pool:
    """The pool of a name; raises ``UsageError`` if there is none."""
    for pool in pools:
        if pool == name:
            return pool
    raise UsageError(f"unknown pool `{name}`", hint=closest(name, pools))


def require_counts(scenes: int, seeds: int) -> None:
    """Raise ``UsageError`` unless a pool has so many scenes, and a scene so many seeds."""
    if not 1 <= scenes <= POOL_SIZE or not 1 <= seeds <= SEED_STRIDE:
        raise UsageError(
            f"cannot study {scenes} scenes with {seeds} seeds",
            hint=f"a pool has {POOL_SIZE} scenes, and there are 1 to {SEED_STRIDE} seeds",
        )


def require_memory_of_sprites(config: RunConfig, *, judged: str) -> RetrievalMemory:
    """The memory of a configuration; raises unless it retrieves, and its videos show the sprite world."""
    if not family_of(config).shows_sprites:
        raise UsageError(f"{judged} judged in the sprite world", hint="leave `backbone` as it is")
    memory = config.memory
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        raise UsageError(
            f"the memory strategy `{memory.strategy}` retrieves nothing",
            hint="set `memory.strategy` to one that retrieves, and `memory.retrieved` to more than 0",
        )
    return memory


def weights_digests(config: RunConfig) -> dict[str, str]:
    """The SHA-256 of each file of the embedded model, and of a retrieval encoder that replaces its own."""
    bundled = EMBEDDED.bundled_encoder.parent
    files = {file.name: file for file in sorted(bundled.glob("*.safetensors"))}
    for setting, file in family_of(config).files(config, weights_folder()).items():
        if file.is_file() and file.parent != bundled:
            files[setting] = file
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
