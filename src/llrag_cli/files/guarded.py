"""Guarded reading of files and JSON: none is larger or deeper than a plausible one, and its numbers are finite."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEGABYTE = 2**20
DEPTH = 24  # lists and mappings inside each other
VALUES = 200_000  # of one JSON value
MOST = 10_000  # JSON values of a text


class UnreadableError(ValueError):
    """Content that is not what it should be: the reason in a clause, a hint, and the line where it is known."""

    def __init__(self, reason: str, *, hint: str = "check the file", line: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.line = reason, hint, line


def read_bytes(path: Path, *, limit: int = MEGABYTE) -> bytes:
    """The content of a regular file of up to ``limit`` bytes. Raises ``OSError`` and ``UnreadableError``."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise UnreadableError(f"it is {kind}", hint="name a file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnreadableError(f"it is larger than {limit // MEGABYTE} MB", hint="is it the right file?")
    return content


def parse_json(content: str | bytes, *, values: int = VALUES, depth: int = DEPTH) -> Any:
    """The one JSON value of a text. Raises ``UnreadableError``."""
    found = list(json_values(content, values=values, depth=depth, most=1))
    if not found:
        raise UnreadableError("it is empty")
    return found[0][1]


def json_values(
    content: str | bytes, *, values: int = VALUES, depth: int = DEPTH, most: int = MOST, finite: bool = True
) -> Iterator[tuple[int, Any]]:
    """The JSON values of a text, each with the line it starts on. Raises ``UnreadableError``.

    A key that is given twice, a number that is not finite (unless they are allowed), and text with a null character or
    half of a surrogate pair are errors, as are more values and deeper nesting than allowed.
    """
    text = decoded(content)
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_not_finite if finite else float)
    position, line, count = 0, 1, 0
    while (start := _skip_space(text, position)) < len(text):
        line += text.count("\n", position, start)
        start_line = None if most == 1 else line  # of several values, the line tells which one it is
        if count == most:
            kind = "more than one JSON value" if most == 1 else f"more than {most} JSON values"
            raise UnreadableError(f"it holds {kind}", hint="split the file")
        try:
            value, end = decoder.raw_decode(text, start)
            require_plausible(value, values=values, depth=depth, finite=finite)
        except json.JSONDecodeError as error:
            hint = "check commas, quotes and brackets"
            raise UnreadableError(f"not valid JSON: {error.msg.lower()}", hint=hint, line=error.lineno) from None
        except UnreadableError as error:
            raise UnreadableError(error.reason, hint=error.hint, line=start_line) from None
        except RecursionError:
            raise UnreadableError("nested too deep", hint="simplify the file", line=start_line) from None
        except ValueError:
            raise UnreadableError("a number is too long", hint="check the numbers", line=start_line) from None
        yield line, value
        line, position, count = line + text.count("\n", start, end), end, count + 1


def decoded(content: str | bytes) -> str:
    """The text of a file in UTF-8, with or without a byte order mark. Raises ``UnreadableError``."""
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableError("it is not UTF-8 text", hint="save it as UTF-8") from None


def require_plausible(value: Any, *, values: int = VALUES, depth: int = DEPTH, finite: bool = True) -> None:
    """Raise ``UnreadableError`` for what no file of ours holds, in a value of lists and mappings."""
    level, count = [value], 0
    for below in range(depth + 2):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, str):
                require_text(each)
            elif finite and isinstance(each, float) and not math.isfinite(each):
                raise UnreadableError("a number is not finite", hint="check the numbers")
            elif isinstance(each, dict):
                for key in each:
                    require_text(str(key))
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        count += len(inner)
        if count > values:
            raise UnreadableError("too many values", hint="simplify the file")
        if inner and below >= depth:
            raise UnreadableError("nested too deep", hint="simplify the file")
        level = inner


def require_text(text: str) -> None:
    """Raise ``UnreadableError`` for text with a null character, or half of a surrogate pair as in ``"\\ud83d"``."""
    if "\0" in text:
        raise UnreadableError("a text has a null character", hint="remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnreadableError("an escape is no character", hint="check what follows `\\u`") from None


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in a clause: the line and reason, or that of the operating system."""
    if isinstance(error, UnreadableError):
        return error.reason if error.line is None else f"line {error.line}: {error.reason}"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return shortened((str(error) or type(error).__name__).splitlines()[0])


def shortened(value: object, length: int = 80) -> str:
    """A value as text, cut off where it is long."""
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}…"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1) if len(keys) < MOST else keys[0]
        raise UnreadableError(f"the key `{shortened(twice)}` is given twice", hint="keep one of them")
    return content


def _not_finite(name: str) -> float:
    raise UnreadableError(f"`{name}` is not finite", hint="check the numbers")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
