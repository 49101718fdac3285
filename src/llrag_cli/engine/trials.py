"""The fastest of several ways to compute the same, found by trial on the GPU at hand and kept in the user's cache.

A trial is made once for each machine and shape. A candidate whose result differs from that of the default, or that does
not return the same bits twice, is left out.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.files.durable import create_folder, replace_text
from llrag_cli.files.guarded import UnreadableError, read_bytes, shortened
from llrag_cli.files.paths import cache_folder
from llrag_cli.files.records import Record, parse_as
from llrag_cli.files.resources import out_of_memory

GAIN = 0.97  # share of the default's time that another must stay below, so that noise decides nothing
# what candidates raise that lack a package, a GPU of their kind, or a dtype
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, OSError)
ROUNDS, CALLS = 5, 4  # rounds of all candidates in turns, and calls of each in a round

Name = TypeVar("Name", bound=str)
Compute = Callable[[Name], Tensor]  # by the candidate of a name
Clock = Callable[[Callable[[], object]], float]  # milliseconds of a call


class Shape(Protocol):
    """What is computed: a dataclass whose fields are numbers and words."""

    @property
    def dtype(self) -> str:
        """Of the results, such as `bfloat16`."""
        ...


class Trial(Record):
    """What a trial found on a machine, as it is kept."""

    machine: dict[str, str] = Field(description="the GPU, and versions of what computes on it")
    shape: dict[str, bool | int | str] = Field(description="fields of the shape")
    repeatable: bool = Field(description="whether candidates had to return the same bits twice")
    chosen: str = Field(description="the candidate to use")
    milliseconds: dict[str, float] = Field(description="of each candidate that is eligible")
    refused: dict[str, str] = Field(description="why the others are not")


@dataclass(frozen=True)
class Choice(Generic[Name]):
    """What there is to choose from, and where the trials of it are kept."""

    folder: str  # in the user's cache
    candidates: tuple[Name, ...]  # the first is the default
    tolerance: Mapping[torch.dtype, float]  # of results: relative RMS difference to the default's

    def fastest(
        self, shape: Shape, device: torch.device, prepare: Callable[[], Compute[Name]], *, repeatable: bool
    ) -> Name:
        """The candidate that a trial on a GPU at a shape finds, or has found; ``prepare`` returns what computes it.

        Only ``repeatable`` ones, which return the same bits for the same input, are eligible if that is asked for.
        """
        machine = machine_of(device)
        file = self.file_of(machine, shape, repeatable=repeatable)
        found = self.read(file)
        if found is None or (found.machine, found.shape) != (machine, vars(shape)):
            with torch.cuda.device(device):
                found = self.compare(shape, prepare(), machine=machine, repeatable=repeatable)
            with suppress(LlragError, OSError):  # without a place to keep it, it is found again
                create_folder(file.parent)
                replace_text(file, found.model_dump_json(indent=2) + "\n")
        return next(name for name in self.candidates if name == found.chosen)

    def compare(
        self,
        shape: Shape,
        compute: Compute[Name],
        *,
        machine: Mapping[str, str],
        repeatable: bool,
        clock: Clock | None = None,
    ) -> Trial:
        """Time the candidates at a shape, in turns, and choose: the default, unless another one is clearly faster."""
        clock = clock or milliseconds
        default, *others = self.candidates
        expected = compute(default).double()
        calls = {default: partial(compute, default)}
        refused: dict[str, str] = {}
        tolerance = self.tolerance[getattr(torch, shape.dtype)]
        for name in others:
            call = partial(compute, name)
            reason = _reason_against(call, expected, default=default, tolerance=tolerance, repeatable=repeatable)
            if reason is None:
                calls[name] = call
            else:
                refused[name] = reason
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS if len(calls) > 1 else 1):
            for each, timed in calls.items():
                times[each].append(clock(timed))
        medians = {name: round(statistics.median(taken), 4) for name, taken in times.items()}
        fastest = min(medians, key=lambda name: medians[name])
        return Trial(
            machine=dict(machine),
            shape=dict(vars(shape)),
            repeatable=repeatable,
            chosen=fastest if medians[fastest] < GAIN * medians[default] else default,
            milliseconds=medians,
            refused=refused,
        )

    def kept(self, machine: Mapping[str, str]) -> Iterator[Trial]:
        """The trials that were made on this machine, with the packages it has now."""
        for file in sorted(self._folder().glob("*.json")):
            found = self.read(file)
            if found is not None and found.machine == machine:
                yield found

    def file_of(self, machine: Mapping[str, str], shape: Shape, *, repeatable: bool) -> Path:
        """Where a trial is kept."""
        identity = json.dumps([dict(machine), vars(shape), repeatable], sort_keys=True)
        return self._folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"

    def read(self, file: Path) -> Trial | None:
        """A trial that was kept; None if there is none, or the file is damaged, or names what is no candidate."""
        try:
            found = parse_as(Trial, read_bytes(file))
        except (OSError, UnreadableError):
            return None
        return found if found.chosen in self.candidates else None

    def _folder(self) -> Path:
        return cache_folder() / self.folder


def machine_of(device: torch.device) -> dict[str, str]:
    """What the speed and the result of a computation on a GPU depend on."""
    machine = {
        "device": torch.cuda.get_device_name(device),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(device)),
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
    }
    for package in ("diffusers", "flash-attn", "flash-attn-3"):
        with suppress(PackageNotFoundError):
            machine[package] = version(package)
    return machine


def milliseconds(call: Callable[[], object]) -> float:
    """Time of a call on the current GPU, the mean of a few."""
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    elapsed: Any = begin.elapsed_time(end)
    return float(elapsed) / CALLS


def _reason_against(
    call: Callable[[], Tensor], expected: Tensor, *, default: str, tolerance: float, repeatable: bool
) -> str | None:
    """Why a candidate cannot be used, in a clause; None if it can."""
    try:
        first = call()
        again = call() if repeatable else first
        error = ((first.double() - expected).norm() / expected.norm()).item()
        same = (first == again).all().item()
    except FAILURES as failure:
        if out_of_memory(failure):
            return "memory ran out"
        return shortened((str(failure) or type(failure).__name__).splitlines()[0], 200)
    if not error <= tolerance:  # also NaN
        return f"its result differs from that of `{default}` by {error:.1e}"
    return None if same else "it does not return the same bits twice"
