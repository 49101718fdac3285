"""The header of a safetensors file, checked against the file before anything is allocated; torch is not imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, shortened

LONGEST = 16 * MEGABYTE  # of a header
TENSORS = 100_000
AXES = 16
BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it; ``start`` and ``stop`` count bytes after the header."""

    name: str
    dtype: str  # as in the header: F32
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The tensors and the metadata of a file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path, *, whole: bool = True) -> Header:
    """The header of a file, whose tensors fill it without overlaps and gaps.

    With ``whole=False``, the file of a run that is not finished may be longer. Raises ``OSError`` and
    ``UnreadableError``.
    """
    if path.exists() and not path.is_file():
        raise UnreadableError("it is not a regular file")
    with path.open("rb") as file:
        size = path.stat().st_size
        first = file.read(8)
        if len(first) < 8:
            raise UnreadableError("it is empty" if not first else "it ends in its header")
        length = int.from_bytes(first, "little")
        if length > size - 8:
            raise UnreadableError("its header is longer than the file")
        if length > LONGEST:
            raise UnreadableError(f"its header is larger than {LONGEST // MEGABYTE} MB")
        text = file.read(length)
    try:
        content = parse_json(text, values=30 * TENSORS, depth=4)
    except UnreadableError as error:
        raise UnreadableError(f"its header is damaged: {error.reason}") from None
    if not isinstance(content, dict):
        raise UnreadableError("its header is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnreadableError("the metadata in its header is not text")
    entries = {name: _entry(name, about) for name, about in content.items()}
    _require_tiled(entries, size - 8 - length, whole=whole)
    return Header(entries, metadata)


def _entry(name: str, about: Any) -> Entry:
    """A tensor of the header, checked by itself."""
    shown = f"tensor `{shortened(name)}`"
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise UnreadableError(f"{shown} has no dtype, shape and offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UnreadableError(f"{shown} has the unknown dtype `{shortened(dtype)}`")
    if not _are_counts(shape) or len(shape) > AXES:
        raise UnreadableError(f"{shown} has the shape `{shortened(shape)}`")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UnreadableError(f"{shown} has the offsets `{shortened(offsets)}`")
    start, stop = offsets
    size = math.prod(shape) * BITS[dtype] // 8
    if size != stop - start:
        raise UnreadableError(f"{shown} has {shortened(size)} bytes by its shape, {stop - start} by its offsets")
    return Entry(name, dtype, tuple(shape), start, stop)


def _are_counts(value: Any) -> bool:
    """Whether a value is a list of counts that fit into 48 bits."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**48 for each in value)


def _require_tiled(entries: dict[str, Entry], size: int, *, whole: bool) -> None:
    """Raise an error unless tensors follow each other from the first to the last byte of the data."""
    ordered = sorted(entries.values(), key=lambda entry: (entry.start, entry.stop))
    if ordered and ordered[-1].stop > size:
        raise UnreadableError(f"tensor `{shortened(ordered[-1].name)}` lies beyond the end of the file")
    if ordered and ordered[0].start != 0:
        raise UnreadableError(f"there is a gap before tensor `{shortened(ordered[0].name)}`")
    for before, after in pairwise(ordered):
        if after.start != before.stop:
            problem = "overlap" if after.start < before.stop else "have a gap between them"
            raise UnreadableError(f"tensors `{shortened(before.name)}` and `{shortened(after.name)}` {problem}")
    stop = ordered[-1].stop if ordered else 0
    if whole and stop != size:
        raise UnreadableError(f"{size - stop} bytes at its end are of no tensor")
