"""``llrag doctor``: what this machine can run, before it is tried."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.config import EXACT, PLACES, TIERS
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.paths import weights_folder
from llrag_cli.formatting import human
from llrag_cli.presets import Method, load_config, preset_names

if TYPE_CHECKING:
    from llrag_cli.planning import Budget


@dataclass(frozen=True)
class DoctorRequest:
    """What was asked for on the command line."""

    seconds: float
    backbone: str | None
    method: Method
    memory_budget: str | None
    device: str
    dtype: str
    offload: bool
    as_json: bool


def run(request: DoctorRequest) -> None:
    """Look around and report; problems are part of the report, not errors."""
    if not 0 < request.seconds < float("inf"):
        raise UsageError(
            f"memory for {request.seconds:g} seconds cannot be planned", hint="`--seconds` must be more than 0"
        )
    if request.backbone is not None:
        _show_plans(request, request.backbone)
        return
    with console.working("looking"):
        machine = _machine(request.device)
        rows = [_backbone(name, request) for name in preset_names()]
    if request.as_json:
        console.result_json({"machine": machine, "backbones": rows})
        return
    for name, value in machine.items():
        console.result(f"{name:<9}{value}")
    console.result("")
    table = Table("backbone", "weights", f"memory for {request.seconds:g} s", "", box=None, pad_edge=False)
    for row in rows:
        needs = [f"{human(row['device_bytes'])} on {row['device']}"]
        if row["host_bytes"]:
            needs.append(f"{human(row['host_bytes'])} on the host")
        if row["disk_bytes"]:
            needs.append(f"{human(row['disk_bytes'])} on disk")
        table.add_row(row["backbone"], row["weights"], ", ".join(needs), row["verdict"])
    console.result_table(table)


def _show_plans(request: DoctorRequest, name: str) -> None:
    """The plan of one backbone with each tier of the archive: parts in rows, tiers in columns."""
    with console.working("planning"):
        budgets = _plans(request, name)
        auto = _plan(request, name, settings=("memory.archive=auto",))
        chosen = auto.config.memory.archive if auto.short is None else None
    rows = {tier: _row(budget) for tier, budget in budgets.items()}
    if request.as_json:
        seconds = request.seconds
        console.result_json({"backbone": name, "seconds": seconds, "chosen": chosen, "archives": rows})
        return
    titles = [f"{tier} *" if tier == chosen and len(budgets) > 1 else tier for tier in budgets]
    table = Table(f"{name}, {request.seconds:g} s", *titles, box=None, pad_edge=False)
    parts = dict.fromkeys((part.place, part.name) for budget in budgets.values() for part in budget.parts)
    for place in PLACES:
        if not any(budget.total(place) for budget in budgets.values()):
            continue
        for where, part in parts:
            if where == place:
                found = [
                    sum(each.bytes for each in budget.parts if (each.place, each.name) == (place, part))
                    for budget in budgets.values()
                ]
                table.add_row(part, *(human(size) if size else "" for size in found))
        first = next(iter(budgets.values()))
        room = first.room(place)
        title = f"on {first.called(place)}" + ("" if room is None else f", of {human(room)}")
        table.add_row(f"[bold]{title}[/]", *(f"[bold]{human(each.total(place))}[/]" for each in budgets.values()))
        table.add_row()
    table.add_row("", *("fits" if row["verdict"] == "fits" else "does not fit" for row in rows.values()))
    console.result_table(table)
    if len(budgets) > 1:
        taken = "* what `--archive auto` takes" if chosen else "nothing that `--archive auto` tries fits"
        console.result(f"{taken}; {', '.join(EXACT)} write the same video, the others nearly the same")


def _plans(request: DoctorRequest, name: str) -> dict[str, Budget]:
    tiers = TIERS if _plan(request, name, settings=()).config.memory.recalls else ("device",)
    return {tier: _plan(request, name, settings=(f"memory.archive={tier}",)) for tier in tiers}


def _machine(device: str) -> dict[str, str]:
    import torch

    from llrag_cli.engine.pipeline import find_device
    from llrag_cli.planning import free_memory
    from llrag_cli.runs.statistics import versions
    from llrag_cli.runs.video import ffmpeg

    try:
        encoder = ffmpeg()
    except LlragError as error:
        encoder = f"not found: {error.problem}"
    folder = weights_folder()
    there = folder
    while not there.exists():
        there = there.parent
    host = free_memory(None)
    memory = "free memory unknown" if host is None else f"{human(host)} free"
    found = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "ffmpeg": encoder,
        "device": str(find_device(device)),
        "host": f"{os.cpu_count()} CPU cores, {memory}",
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {human(free)} free of {human(total)}"
    found["weights"] = f"{folder}, {human(shutil.disk_usage(there).free)} free on its disk"
    return found


def _plan(request: DoctorRequest, name: str, *, settings: Sequence[str]) -> Budget:
    from llrag_cli.engine.pipeline import find_device, find_dtype
    from llrag_cli.planning import parse_bytes, plan

    config = load_config(name, method=request.method, settings=settings)
    device = find_device(request.device)
    return plan(
        config,
        weights_folder(),
        device=device,
        dtype=find_dtype(request.dtype, device, family=config.backbone.family),
        seconds=request.seconds,
        offload=request.offload,
        limit=None if request.memory_budget is None else parse_bytes(request.memory_budget),
        scratch=Path("runs"),
    )


def _row(budget: Budget) -> dict[str, Any]:
    """What a plan takes, and whether there is as much."""
    row: dict[str, Any] = {f"{place}_bytes": budget.total(place) for place in PLACES}
    row["parts"] = [{"name": part.name, "bytes": part.bytes, "place": part.place} for part in budget.parts]
    row["archive"] = budget.config.memory.archive
    row["verdict"] = "fits"
    if (short := budget.short) is not None:
        largest = max((part for part in budget.parts if part.place == short), key=lambda part: part.bytes)
        row["verdict"] = f"does not fit: {human(largest.bytes)} for {largest.name}"
    return row


def _backbone(name: str, request: DoctorRequest) -> dict[str, Any]:
    from llrag_cli.engine.pipeline import find_device
    from llrag_cli.models.weights import missing_files

    config = load_config(name, method=request.method)
    missing = missing_files(config, weights_folder())
    row: dict[str, Any] = {
        "backbone": name,
        "device": str(find_device(request.device)),
        "missing": [str(path) for path in missing.values()],
    }
    embedded = config.backbone.family == "tiny"
    row["weights"] = "in the package" if embedded else f"{len(missing)} missing" if missing else "present"
    try:
        row |= _row(_plan(request, name, settings=()))
    except LlragError as error:  # damaged weights
        return row | {"device_bytes": 0, "host_bytes": 0, "disk_bytes": 0, "parts": [], "verdict": error.problem}
    if row["verdict"] == "fits" and missing:
        row["verdict"] = f"fits; `llrag download weights {name}` first"
    return row
