"""Records that are written as JSON and read back: strict models, with problems named by field."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llrag_cli.errors import DamagedFileError
from llrag_cli.files.guarded import (
    DEPTH,
    MEGABYTE,
    VALUES,
    UnreadableError,
    parse_json,
    read_bytes,
    reason_of,
    shortened,
)
from llrag_cli.files.paths import is_inner_path


class Record(BaseModel):
    """Base of what is recorded: immutable, unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def parse_as(
    model: type[Model], content: str | bytes, *, values: int = VALUES, depth: int = DEPTH, strict: bool = True
) -> Model:
    """A record from its JSON text. Raises ``UnreadableError``."""
    parse_json(content, values=values, depth=depth)
    try:
        return model.model_validate_json(content, strict=strict)
    except ValidationError as error:
        raise UnreadableError(first_problem(error)) from None


def parse_lines(model: type[Model], content: bytes, *, values: int = VALUES) -> list[Model]:
    """The records of a log, one per line, without a last line that was cut off. Raises ``UnreadableError``."""
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            records.append(parse_as(model, line, values=values))
        except UnreadableError as error:
            raise UnreadableError(error.reason, hint=error.hint, line=number) from None
    return records


def first_problem(error: ValidationError) -> str:
    """The first problem that validation found, with the name of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = shortened(".".join(map(str, first["loc"])))
    message = shortened(str(first["msg"]).removeprefix("Value error, "), 300)
    message = message[:1].lower() + message[1:]
    return f"`{field}`: {message}" if field else message


class _ShardIndex(BaseModel):
    """An index of a model that is saved in shards, such as ``model.safetensors.index.json``."""

    weight_map: dict[str, str]


def read_shards(index: Path) -> set[str]:
    """Paths of the shards of a model, which lie below the folder of their index."""
    try:
        shards = {*parse_as(_ShardIndex, read_bytes(index, limit=16 * MEGABYTE)).weight_map.values()}
    except (OSError, UnreadableError) as error:
        raise DamagedFileError(index, reason_of(error), kind="an index of shards") from None
    if outside := [shard for shard in shards if not is_inner_path(shard)]:
        reason = f"it names the shard {shortened(repr(outside[0]))}"
        raise DamagedFileError(index, reason, kind="an index of shards")
    return shards
