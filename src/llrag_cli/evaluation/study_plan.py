"""What studies have in common before they begin: pools of scenes, and what is checked and written down.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError, UsageError, closest
from llrag_cli.files.durable import require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, read_bytes, reason_of
from llrag_cli.files.paths import weights_folder
from llrag_cli.files.records import parse_as
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.embedded.family import FAMILY as EMBEDDED
from llrag_cli.models.family import family_of

Pool = Literal["search", "confirm", "search-2", "confirm-2"]
POOLS: tuple[Pool, ...] = ("search", "confirm")  # that every study has
RETURN_POOLS: tuple[Pool, ...] = get_args(Pool)  # of returning scenes: two pairs, each for one round of search
POOL_SIZE = 48  # scenes of each pool
SEED_STRIDE = 1000  # between scenes, so that no two share their noise
Key = tuple[int, int, str]  # scene from 1, its seed from 0, and the shot or condition
FOLDERS = ("pictures", "videos")
FILES = ("settings.json", "rows.jsonl", "results.json", "results.csv", "sheet.png", *FOLDERS)  # of a study


@dataclass(frozen=True)
class Step:
    """What is missing of one shot, in all videos together."""

    name: str
    about: str
    videos: int
    generated: int  # latent frames
    replayed: int  # latent frames that are given and leave their keys and values alone
    pictures: int  # frames that are kept


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


def finished_rows(root: Path, settings: Mapping[str, Any]) -> list[bytes]:
    """The complete lines of a study's ``rows.jsonl``.

    Raises ``UsageError`` if the folder was begun under other settings or holds something else, ``LlragError`` if it is
    damaged.
    """
    file = reading = root / "settings.json"
    for name in FILES:
        require_own(root / name, folder=name in FOLDERS)
    if not file.exists():
        if root.is_dir() and any(not path.name.startswith(FILES) for path in root.iterdir()):
            raise UsageError(f"`{root}` exists and is not empty", hint="choose another folder")
        return []
    try:
        found = parse_json(read_bytes(file))
        if not isinstance(found, dict):
            raise UnreadableError("it is not an object")
        reading = root / "rows.jsonl"
        lines = complete_lines(reading)
    except (OSError, UnreadableError) as error:
        raise not_continued(reading, error) from None
    if differing := [name for name in settings if found.get(name) != settings[name]]:
        raise UsageError(
            f"`{root}` was begun with other settings: {', '.join(f'`{name}`' for name in differing)} differ",
            hint="choose another folder, or the settings in its settings.json",
        )
    return lines


def finished_keys(root: Path, settings: Mapping[str, Any]) -> set[Key]:
    """The rows that a study's folder has, without what they say. Raises as ``finished_rows``."""
    lines = finished_rows(root, settings)
    try:
        found = [parse_as(_RowKey, line) for line in lines]
    except UnreadableError as error:
        raise not_continued(root / "rows.jsonl", error) from None
    return {(row.scene, row.seed, row.shot) for row in found}


class _RowKey(BaseModel):
    """What all rows have."""

    scene: int
    seed: int
    shot: str


def complete_lines(file: Path) -> list[bytes]:
    """The lines of a file, without a last one that a crash has cut off; none if there is no file."""
    content = read_bytes(file, limit=16 * MEGABYTE) if file.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def not_continued(file: Path, error: OSError | UnreadableError) -> LlragError:
    """The error of a folder in which a file cannot be read."""
    problem = f"`{file.parent}` cannot be continued: `{file.name}`: {reason_of(error)}"
    return LlragError(problem, hint="choose another folder")
