"""YAML with the line of every value, for error messages; limits keep hostile files short and harmless."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llrag_cli.errors import UsageError

LIMIT = 1_000_000  # bytes of a file
DEPTH = 24  # lists and mappings inside each other
NODES = 50_000  # values, aliases expanded

Location = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is some ten times as fast


@dataclass(frozen=True)
class Document:
    """The content of a file, and the line on which each key or list item stands."""

    content: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Sequence[str | int]) -> int | None:
        """The line of a value, or of the nearest that encloses it."""
        for length in range(len(location), 0, -1):
            if tuple(location[:length]) in self.lines:
                return self.lines[tuple(location[:length])]
        return None


def read_text(path: Path, *, kind: str) -> str:
    """The text of a file of up to ``LIMIT`` bytes; ``kind`` names it in errors ("scene file")."""
    try:
        if path.is_dir():
            raise UsageError(f"`{path}` is a folder, not a {kind}", hint=f"name the {kind} itself")
        if path.exists() and not path.is_file():
            raise UsageError(f"`{path}` is not a regular file", hint=f"a {kind} is a text file")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise UsageError(f"`{path}` is larger than 1 MB", hint=f"a {kind} is a short text file")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{kind} `{path}` does not exist", hint="check the path") from None
    except UnicodeDecodeError:
        raise UsageError(f"`{path}` is not UTF-8 text", hint=f"save the {kind} as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"`{path}` cannot be read: {reason.lower()}", hint="check the path and its permissions"
        ) from None


def parse_yaml(text: str, *, name: str) -> Document:
    """The content of a YAML text; ``name`` is the file's name, for errors."""
    try:
        _check_depth(text, name)
        loader = _Loader(text)
        try:
            tree = loader.get_single_node()
            if tree is None:
                raise UsageError(f"`{name}` is empty", hint="write at least one key")
            lines = dict(_lines(tree, (), name, [0]))
            return Document(loader.construct_document(tree), lines)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "a character is not allowed"
        raise UsageError(
            f"`{name}`{where}: not valid YAML: {reason}", hint="check indentation, quotes and colons"
        ) from None
    except RecursionError:  # an alias inside of what it stands for
        raise UsageError(f"`{name}`: an alias contains itself", hint="write the values out") from None
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"`{name}` holds a number or date that cannot be read", hint="put it in quotes") from None


def parse_json(text: str, *, name: str) -> list[tuple[int, Any]]:
    """The JSON values of a text, one or several (JSON lines), each with the line it starts on."""
    decoder, values, position, line = json.JSONDecoder(), [], 0, 1
    try:
        while (start := _skip_space(text, position)) < len(text):
            line += text.count("\n", position, start)
            value, end = decoder.raw_decode(text, start)
            json.dumps(value, ensure_ascii=False).encode()
            values.append((line, value))
            line, position = line + text.count("\n", start, end), end
            if len(values) > 10_000:
                raise UsageError(f"`{name}` holds more than 10000 JSON values", hint="split the file")
    except json.JSONDecodeError as error:
        hint = "check commas, quotes and brackets"
        raise UsageError(f"`{name}`, line {error.lineno}: not valid JSON: {error.msg.lower()}", hint=hint) from None
    except RecursionError:
        raise UsageError(f"`{name}`, line {line}: nested too deep", hint="simplify the file") from None
    except UnicodeEncodeError:  # half of a pair, `"\ud83d"`
        raise UsageError(f"`{name}`, line {line}: an escape is no character", hint="check what follows `\\u`") from None
    except ValueError:
        raise UsageError(f"`{name}`, line {line}: a number is too long", hint="check the numbers") from None
    if not values:
        raise UsageError(f"`{name}` is empty", hint="write at least one value")
    return values


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _check_depth(text: str, name: str) -> None:
    """Refuse deep nesting before anything recurses over it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH or count > 2 * NODES:
            line = event.start_mark.line + 1 if event.start_mark else 1
            what = f"nested more than {DEPTH} levels deep" if depth > DEPTH else "too many values"
            raise UsageError(f"`{name}`, line {line}: {what}", hint="simplify the file")


def _lines(node: yaml.Node, location: Location, name: str, visited: list[int]) -> Iterator[tuple[Location, int]]:
    visited[0] += 1
    line = node.start_mark.line + 1
    if visited[0] > NODES or len(location) > DEPTH:
        raise UsageError(f"`{name}`, line {line}: aliases expand to too many values", hint="write the values out")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*location, index), item.start_mark.line + 1
            yield from _lines(item, (*location, index), name, visited)
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            where = f"`{name}`, line {key.start_mark.line + 1}"
            merge = key.tag == "tag:yaml.org,2002:merge"
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{where}: a key must be text, not a list or mapping", hint="check colons and `?`")
            if not merge and key.tag != "tag:yaml.org,2002:str":
                raise UsageError(f"{where}: a key must be text, not `{key.value[:80]}`", hint="put the key in quotes")
            if key.value in keys:
                raise UsageError(f"{where}: the key `{key.value[:80]}` is given twice", hint="keep one of them")
            keys.add(key.value)
            inner = location if merge else (*location, key.value)
            if not merge:
                yield inner, key.start_mark.line + 1
            yield from _lines(value, inner, name, visited)
