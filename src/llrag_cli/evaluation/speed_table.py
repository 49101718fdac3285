"""A table of speed and memory: ways to run a backbone, each measured in a process of its own.

Importing this does not import torch.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llrag_cli.config import EightBit
from llrag_cli.errors import UsageError, closest
from llrag_cli.files.durable import create_folder, replace_text
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, read_bytes, shortened
from llrag_cli.files.records import Record, parse_as
from llrag_cli.formatting import human
from llrag_cli.runs.statistics import versions

Decoder = Literal["full", "tiny"]
Seconds = Annotated[float, Field(ge=0, le=10.0**9)]
Rate = Annotated[float, Field(ge=0, le=10.0**12)]
Bytes = Annotated[int, Field(ge=0, le=2**60)]
WORDS: Mapping[str, tuple[str, Any]] = {  # of a choice: the field that a word sets, and its value
    "eager": ("compiled", False),
    "compiled": ("compiled", True),
    "graphs": ("graphs", True),
    "full": ("decoder", "full"),
    "tiny": ("decoder", "tiny"),
    "int8": ("quantize", "int8"),
    "fp8": ("quantize", "fp8"),
}


@dataclass(frozen=True)
class Choice:
    """A way to run a backbone."""

    compiled: bool = False
    graphs: bool = False  # CUDA graphs
    decoder: Decoder = "full"
    quantize: EightBit | None = None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The choice of words joined by ``+``, such as ``compiled+tiny``. Raises ``UsageError``."""
        fields: dict[str, Any] = {}
        for word in text.split("+"):
            if word not in WORDS:
                problem = f"unknown word `{shortened(word)}` in the choice `{shortened(text)}`"
                raise UsageError(problem, hint=closest(word, WORDS))
            field, value = WORDS[word]
            if field in fields:
                raise UsageError(
                    f"the choice `{shortened(text)}` says twice how it differs", hint=f"one of {_words_of(field)}"
                )
            fields[field] = value
        return cls(**fields)

    @property
    def name(self) -> str:
        """Its words; the full decoder and full precision are not named."""
        words = [
            "compiled" if self.compiled else "eager",
            "graphs" if self.graphs else "",
            "tiny" if self.decoder == "tiny" else "",
            self.quantize or "",
        ]
        return "+".join(filter(None, words))

    @property
    def settings(self) -> tuple[str, ...]:
        """What it changes in the configuration, as ``KEY=VALUE``."""
        decoder = ("video.decoder=tiny",) if self.decoder == "tiny" else ()
        return decoder if self.quantize is None else (*decoder, f"backbone.quantize={self.quantize}")


def _words_of(field: str) -> str:
    return ", ".join(f"`{word}`" for word, (each, _) in WORDS.items() if each == field)


def all_choices() -> list[Choice]:
    """Every way to run a backbone; some are refused by some backbones and machines."""
    kinds: tuple[EightBit | None, ...] = (None, *get_args(EightBit))
    return [Choice(*each) for each in product((False, True), (False, True), get_args(Decoder), kinds)]


class _Part(BaseModel):
    """Of what a process printed, what a table reads; it may have more."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Generation(_Part):
    block_seconds: Seconds


class _EndToEnd(_Part):
    pixel_fps: Rate


class _Memory(_Part):
    generation: _Generation
    end_to_end: _EndToEnd
    decode_seconds: Seconds
    planned_bytes: Bytes
    peak_bytes: Bytes | None


class _Ratio(_Part):
    median: Rate


class _Ratios(_Part):
    generation: _Ratio


class _Speed(_Part):
    """The result of ``bench speed --json``."""

    backbone: str
    weights: str
    parameters: int = Field(ge=0)
    width: int
    height: int
    dtype: str
    device: str
    threads: int
    attention: str
    blocks: int
    frames_per_block: int
    warmup: int
    memories: dict[str, _Memory] = Field(min_length=1)
    ratios: dict[str, _Ratios]
    planned_bytes: Bytes
    peak_memory_bytes: Bytes | None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _of_the_same_memories(self) -> Self:
        if {*self.ratios} != {*[*self.memories][1:]}:
            raise ValueError("the ratios are not those of the memories")
        return self


class _Check(_Part):
    """The result of ``checked``."""

    dtype: str
    compared: int = Field(ge=0)
    failed: list[str]

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if len(self.failed) > self.compared:
            raise ValueError("more failed than were compared")
        return self


def _is_result(result: Any, arguments: Sequence[str], memories: Sequence[str]) -> bool:
    """Whether the process of these arguments could have printed this, so that a table can be made of it."""
    model = _Check if arguments[0] == "verify" else _Speed
    try:
        found = model.model_validate(result)
    except ValidationError:
        return False
    return isinstance(found, _Check) or [*found.memories] == [*memories]


class Measured(Record):
    """How the process of a choice, or a check, ended."""

    identity: str = Field(description="hash of what was asked for, versions and machine")
    command: tuple[str, ...] = Field(description="arguments of the process")
    seconds: float = Field(ge=0, description="wall time of the process")
    result: dict[str, Any] | None = Field(default=None, description="what it printed; None: it failed")
    error: str | None = Field(default=None, description="why it failed")


Run = Callable[[Sequence[str]], tuple[dict[str, Any] | None, str | None, float]]  # result, error, seconds


class Results:
    """The folder where results are kept, so that the same request measures only what is missing."""

    def __init__(self, folder: Path, memories: Sequence[str]) -> None:
        self.folder, self.memories = folder, tuple(memories)

    def find(self, name: str, arguments: Sequence[str]) -> Measured | None:
        """A result of the same arguments, versions and machine; None if it is missing or damaged, or failed."""
        try:
            kept = parse_as(Measured, read_bytes(self._file(name), limit=MEGABYTE))
        except (OSError, UnreadableError):
            return None
        same = kept.identity == identity_of(arguments) and kept.command == tuple(arguments)
        return kept if same and kept.error is None and _is_result(kept.result, arguments, self.memories) else None

    def measure(self, name: str, arguments: Sequence[str], run: Run) -> Measured:
        """The result that is kept, or else a new one."""
        kept = self.find(name, arguments)
        if kept is not None:
            return kept
        result, error, seconds = run(arguments)
        if result is not None and not _is_result(result, arguments, self.memories):
            result, error = None, "what it printed is not a result of this version"
        measured = Measured(
            identity=identity_of(arguments),
            command=tuple(arguments),
            seconds=round(seconds, 3),
            result=result,
            error=error,
        )
        create_folder(self.folder)
        replace_text(self._file(name), measured.model_dump_json(indent=2) + "\n")
        return measured

    def write(self, *, markdown: str, content: Mapping[str, Any]) -> None:
        """Write the table, as a page and as data."""
        replace_text(self.folder / "table.md", markdown + "\n")
        replace_text(self.folder / "table.json", json.dumps(content, indent=2) + "\n")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def identity_of(arguments: Sequence[str]) -> str:
    """A hash of what a result depends on."""
    about = [list(arguments), versions("torchao"), platform.node()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def checked(checks: Sequence[Mapping[str, Any]], *, dtype: str) -> dict[str, Any]:
    """A summary of the checks of ``replay``, as dictionaries."""
    compared = [check for check in checks if check["error"] is not None]
    failed = [f"{check['case']}: {check['quantity']}" for check in compared if not check["passed"]]
    return {"dtype": dtype, "compared": len(compared), "failed": failed}


def table_of(rows: Mapping[str, Measured], memories: Sequence[str]) -> list[list[str]]:
    """Headings, and a row for each choice. Of one that failed, there is the reason instead of numbers.

    Memory is the planned and the measured peak, in GB: on a GPU of each memory alone, on a CPU of the whole process,
    with all memories together.
    """
    found = [row.result for row in rows.values() if row.result is not None]
    alone = all(entry["peak_bytes"] is not None for result in found for entry in result["memories"].values())
    alone = alone and bool(found)
    base, *others = memories
    headings = [
        "choice",
        *(f"{name}, ms a block" for name in memories),
        *(f"{name} / {base}" for name in others),
        "decoding, ms a block",
        *(f"{name}, frames/s with decoding" for name in memories),
        *((f"{name}, memory planned / peak" for name in memories) if alone else ("memory planned / peak, together",)),
    ]
    table = [headings]
    for name, row in rows.items():
        cells = [row.error or "failed"] if row.result is None else _cells(row.result, base, others, alone=alone)
        table.append([name, *cells, *[""] * (len(headings) - 1 - len(cells))])
    return table


def markdown_of(table: Sequence[Sequence[str]], about: Sequence[str]) -> str:
    """The table and the lines about it in Markdown."""
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    rows = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines]
    return "\n".join([*rows, "", *(f"- {line}" for line in about)])


def _cells(result: Mapping[str, Any], base: str, others: Sequence[str], *, alone: bool) -> list[str]:
    entries = [result["memories"][name] for name in (base, *others)]
    held = [(entry["planned_bytes"], entry["peak_bytes"]) for entry in entries]
    if not alone:
        held = [(result["planned_bytes"], result["peak_memory_bytes"])]
    return [
        *(f"{1000 * entry['generation']['block_seconds']:.4g}" for entry in entries),
        *(f"{result['ratios'][name]['generation']['median']:.3f}" for name in others),
        f"{1000 * entries[0]['decode_seconds']:.4g}",
        *(f"{entry['end_to_end']['pixel_fps']:.3g}" for entry in entries),
        *(f"{human(planned)} / {'?' if peak is None else human(peak)}" for planned, peak in held),
    ]


def about_table(rows: Mapping[str, Measured], checks: Mapping[str, Measured]) -> list[str]:
    """Lines on what was measured and whether the engine agrees with the recorded vectors there."""
    lines = []
    result = next((row.result for row in rows.values() if row.result is not None), None)
    if result is not None:
        device = result["device"] if result["device"] != "cpu" else f"cpu, {result['threads']} threads"
        lines.append(
            f"{result['backbone']}, {result['weights']} weights, {result['parameters'] / 1e6:.4g} M parameters, "
            f"{result['width']}x{result['height']}, {result['dtype']} on {device}, attention {result['attention']}; "
            f"medians of {result['blocks']} blocks of {result['frames_per_block']} latent frames after "
            f"{result['warmup']}"
        )
        if result["device"] == "cpu":
            lines.append("memory is that of the whole process, of which Python and its libraries take 0.3 GB")
        lines.append(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    for check in checks.values():
        lines.append(f"llrag verify: {verdict(check)}")
    return lines


def verdict(check: Measured) -> str:
    """What a check found, in a line."""
    if check.result is None:
        return f"did not run: {check.error}"
    failed, compared = check.result["failed"], check.result["compared"]
    said = f"{compared - len(failed)} of {compared} quantities within tolerance, {check.result['dtype']}"
    return said if not failed else f"{said}; not {', '.join(failed[:3])}{', ...' if len(failed) > 3 else ''}"
