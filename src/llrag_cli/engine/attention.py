"""Which attention backend of diffusers is the fastest here, found by trial at the shape that a block has.

A trial is made on GPUs only, once for each machine and shape: what it found is kept in the user's cache. All candidates
compute the same function, and their forward passes are deterministic by design; a candidate that is not, or that does
not agree with the native one, is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import create_folder, replace_text
from llrag_cli.files.guarded import UnreadableError, read_bytes, shortened
from llrag_cli.files.paths import cache_folder
from llrag_cli.files.records import Record, parse_as
from llrag_cli.files.resources import out_of_memory
from llrag_cli.models.attention import NATIVE
from llrag_cli.models.wan.transformer import WanBackbone

# Those that keep full precision and load no code from a hub: torch's own, cuDNN's, FlashAttention 3 and 2.
CANDIDATES = (NATIVE, "_native_cudnn", "_flash_3", "flash")
GAIN = 0.97  # share of native's time that another must stay below, so that noise decides nothing
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative RMS difference to native
# what backends raise that lack a package, a GPU of their kind, or a dtype
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, OSError)
ROUNDS, CALLS = 5, 4  # rounds of all candidates in turns, and calls of each in a round
OPEN_WINDOW = 12  # latent frames attended to, for a trial, by a memory without a window

Attend = Callable[[str, Tensor, Tensor, Tensor], Tensor]  # backend, query, keys, values
Clock = Callable[[Callable[[], object]], float]  # milliseconds of a call


@dataclass(frozen=True)
class AttentionShape:
    """What a block's attention computes: queries [batch, queries, heads, D] to keys [batch, keys, heads, D]."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, config: RunConfig, backbone: WanBackbone, *, batch: int) -> AttentionShape:
        """The shape of a block of a batch of videos whose window is full."""
        rows, columns = backbone.grid(config.backbone.height, config.backbone.width)
        sizes = backbone.transformer.config
        return cls(
            batch=batch,
            queries=config.backbone.frames_per_block * rows * columns,
            keys=(config.memory.window or OPEN_WINDOW) * rows * columns,
            heads=sizes.num_attention_heads,
            head_dim=sizes.attention_head_dim,
            dtype=str(backbone.dtype).removeprefix("torch."),
        )


class Trial(Record):
    """What a trial found on a machine, as it is kept."""

    machine: dict[str, str] = Field(description="the GPU, and versions of what computes on it")
    shape: dict[str, int | str] = Field(description="fields of the shape")
    repeatable: bool = Field(description="whether candidates had to return the same bits twice")
    backend: str = Field(description="the one to use")
    milliseconds: dict[str, float] = Field(description="of each candidate that is eligible")
    refused: dict[str, str] = Field(description="why the others are not")


def choose_attention(backbone: WanBackbone, config: RunConfig, *, repeatable: bool, batch: int) -> None:
    """Have a backbone on a GPU compute attention with the backend that a trial finds or has found to be the fastest.

    The trial is that of a ``batch`` of so many videos.

    Only ``repeatable`` ones, which return the same bits for the same input, are eligible if that is asked for. On a
    CPU, and where diffusers is told which one to use by its environment variable, nothing changes.
    """
    if backbone.device.type != "cuda" or "DIFFUSERS_ATTN_BACKEND" in os.environ:
        return
    shape, machine = AttentionShape.of(config, backbone, batch=batch), machine_of(backbone.device)
    file = file_of(machine, shape, repeatable=repeatable)
    found = read_trial(file)
    if found is None or (found.machine, found.shape) != (machine, vars(shape)):
        with torch.cuda.device(backbone.device):
            found = try_backends(shape, backbone.device, machine=machine, repeatable=repeatable)
        with suppress(LlragError, OSError):  # without a place to keep it, it is found again
            create_folder(file.parent)
            replace_text(file, found.model_dump_json(indent=2) + "\n")
    backbone.set_attention(found.backend)


def try_backends(
    shape: AttentionShape,
    device: torch.device,
    *,
    machine: Mapping[str, str],
    repeatable: bool,
    attending: Attend | None = None,
    clock: Clock | None = None,
) -> Trial:
    """Time the candidates at a shape, in turns, and choose: native, unless another one is clearly faster."""
    run, clock = attending or attend, clock or _milliseconds
    dtype: torch.dtype = getattr(torch, shape.dtype)
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(shape.batch, tokens, shape.heads, shape.head_dim, generator=generator, dtype=torch.float32).to(
            device, dtype
        )
        for tokens in (shape.queries, shape.keys, shape.keys)
    )
    expected = run(NATIVE, query, keys, values).double()
    eligible, refused = [NATIVE], {}
    for name in CANDIDATES[1:]:
        reason = _reason_against(
            lambda name=name: run(name, query, keys, values),  # type: ignore[misc]
            expected,
            tolerance=TOLERANCE[dtype],
            repeatable=repeatable,
        )
        if reason is None:
            eligible.append(name)
        else:
            refused[name] = reason
    times: dict[str, list[float]] = {name: [] for name in eligible}
    for _ in range(ROUNDS if len(eligible) > 1 else 1):
        for name in eligible:
            times[name].append(clock(lambda name=name: run(name, query, keys, values)))  # type: ignore[misc]
    medians = {name: round(statistics.median(each), 4) for name, each in times.items()}
    fastest = min(medians, key=lambda name: medians[name])
    return Trial(
        machine=dict(machine),
        shape=dict(vars(shape)),
        repeatable=repeatable,
        backend=fastest if medians[fastest] < GAIN * medians[NATIVE] else NATIVE,
        milliseconds=medians,
        refused=refused,
    )


def machine_of(device: torch.device) -> dict[str, str]:
    """What the speed and the result of attention on a GPU depend on."""
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


def trials_of(machine: Mapping[str, str]) -> Iterator[Trial]:
    """The trials that were made on this machine, with the packages it has now."""
    for file in sorted(_folder().glob("*.json")):
        found = read_trial(file)
        if found is not None and found.machine == machine:
            yield found


def file_of(machine: Mapping[str, str], shape: AttentionShape, *, repeatable: bool) -> Path:
    """Where a trial is kept."""
    identity = json.dumps([dict(machine), vars(shape), repeatable], sort_keys=True)
    return _folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def read_trial(file: Path) -> Trial | None:
    """A trial that was kept; None if there is none, or the file is damaged, or names what is no candidate."""
    try:
        found = parse_as(Trial, read_bytes(file))
    except (OSError, UnreadableError):
        return None
    return found if found.backend in CANDIDATES else None


def _folder() -> Path:
    return cache_folder() / "attention"


def _reason_against(call: Callable[[], Tensor], expected: Tensor, *, tolerance: float, repeatable: bool) -> str | None:
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
        return f"its result differs from that of `{NATIVE}` by {error:.1e}"
    return None if same else "it does not return the same bits twice"


def attend(backend: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [B, L, heads, D] as one of diffusers' backends computes it."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    attended: Tensor = dispatch_attention_fn(query, keys, values, backend=AttentionBackendName(backend))
    return attended


def _milliseconds(call: Callable[[], object]) -> float:
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
