"""YAML with the line of every value, for error messages; limits keep hostile files short and harmless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llrag_cli.errors import UsageError
from llrag_cli.files.guarded import DEPTH, UnreadableError, decoded, read_bytes, reason_of, require_text

LIMIT = 1_000_000  # bytes of a file
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
        return decoded(read_bytes(path, limit=LIMIT))
    except FileNotFoundError:
        raise UsageError(f"{kind} `{path}` does not exist", hint="check the path") from None
    except UnreadableError as error:
        if "UTF-8" in error.reason:
            raise UsageError(f"`{path}` is not UTF-8 text", hint=f"save the {kind} as UTF-8") from None
        raise UsageError(f"`{path}` is larger than 1 MB", hint=f"a {kind} is a short text file") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {reason_of(error)}", hint="check the path and its permissions"
        ) from None


def parse_yaml(text: str, *, name: str, text_keys: bool = True) -> Document:
    """The content of a YAML text, whose keys are text; ``name`` is the file's name, for errors."""
    found = _parsed(text, name, text_keys=text_keys)
    if found is None:
        raise UsageError(f"`{name}` is empty", hint="write at least one key")
    return found


def parse_yaml_value(text: str) -> Any:
    """A single value in YAML; none for an empty text. Raises ``UsageError``."""
    found = _parsed(text, "the value", text_keys=True)
    return None if found is None else found.content


def _parsed(text: str, name: str, *, text_keys: bool) -> Document | None:
    try:
        _check_depth(text, name)
        loader = _Loader(text)
        try:
            tree = loader.get_single_node()
            if tree is None:
                return None
            lines = dict(_lines(tree, (), _Visit(name, text_keys)))
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
    except (ValueError, TypeError, OverflowError, AttributeError, LookupError):
        raise UsageError(f"`{name}` holds a number or date that cannot be read", hint="put it in quotes") from None


@dataclass
class _Visit:
    """A walk over the nodes of a text: what it is named in errors, and how many nodes were visited."""

    name: str
    text_keys: bool
    nodes: int = 0


def _check_depth(text: str, name: str) -> None:
    """Refuse deep nesting before anything recurses over it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH or count > 2 * NODES:
            line = event.start_mark.line + 1 if event.start_mark else 1
            what = f"nested more than {DEPTH} levels deep" if depth > DEPTH else "too many values"
            raise UsageError(f"`{name}`, line {line}: {what}", hint="simplify the file")


def _lines(node: yaml.Node, location: Location, visit: _Visit) -> Iterator[tuple[Location, int]]:
    visit.nodes += 1
    name, line = visit.name, node.start_mark.line + 1
    if visit.nodes > NODES or len(location) > DEPTH:
        raise UsageError(f"`{name}`, line {line}: aliases expand to too many values", hint="write the values out")
    if isinstance(node, yaml.ScalarNode):
        try:
            require_text(node.value)
        except UnreadableError as error:
            raise UsageError(f"`{name}`, line {line}: {error.reason}", hint=error.hint) from None
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*location, index), item.start_mark.line + 1
            yield from _lines(item, (*location, index), visit)
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            where = f"`{name}`, line {key.start_mark.line + 1}"
            merge = key.tag == "tag:yaml.org,2002:merge"
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{where}: a key must be text, not a list or mapping", hint="check colons and `?`")
            if visit.text_keys and not merge and key.tag != "tag:yaml.org,2002:str":
                raise UsageError(f"{where}: a key must be text, not `{key.value[:80]}`", hint="put the key in quotes")
            if key.value in keys:
                raise UsageError(f"{where}: the key `{key.value[:80]}` is given twice", hint="keep one of them")
            keys.add(key.value)
            inner = location if merge else (*location, key.value)
            if not merge:
                yield inner, key.start_mark.line + 1
            yield from _lines(value, inner, visit)
