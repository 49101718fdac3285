"""``llrag doctor``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Device, Dtype, Json, MemoryBudget, Rag, Seconds, configuration
from llrag_cli.errors import LlragError, UsageError

if TYPE_CHECKING:
    from llrag_cli.engine.trials import Choice
    from llrag_cli.planning import Budget

Plan = Callable[[str, Sequence[str]], "Budget"]  # of a backbone, with settings


def doctor(
    seconds: Annotated[float, typer.Option(help="Length of the video to plan memory for", **Seconds)] = 30.0,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show the full memory plan of one backbone, for each archive tier"),
    ] = None,
    rag: Rag = None,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="Plan with the weights kept on the host")] = False,
    card: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Plan for a GPU of so much memory, such as 12GB: which options make it fit"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show this machine, the weights that are present, and whether each backbone fits in memory."""
    from llrag_cli.cli import console
    from llrag_cli.formatting import parse_bytes
    from llrag_cli.runs.record import require_length

    require_length(seconds)
    limit = None if memory_budget is None else parse_bytes(memory_budget)
    size = None if card is None else parse_bytes(card)
    if backbone is not None:
        configuration(backbone, rag=rag)  # an unknown name is an error before torch is imported
    elif size is not None:
        raise UsageError("`--card` needs a backbone", hint="name one with `--backbone`, such as `self-forcing`")
    if backbone is not None and size is not None:
        from llrag_cli.cli.doctor_card import show_card

        show_card(backbone, size, seconds=seconds, rag=rag, dtype=dtype, as_json=as_json)
        return

    def plan(name: str, settings: Sequence[str]) -> Budget:
        from llrag_cli.engine.devices import find_device, find_dtype
        from llrag_cli.files.paths import weights_folder
        from llrag_cli.models.family import family_of
        from llrag_cli.planning import plan as plan_memory

        config = configuration(name, rag=rag, settings=settings)
        target = find_device(device)
        return plan_memory(
            config,
            weights_folder(),
            device=target,
            dtype=find_dtype(dtype, target, family=family_of(config)),
            seconds=seconds,
            offload=offload,
            limit=limit,
            scratch=Path("runs"),
        )

    if backbone is not None:
        _show_plans(backbone, plan, seconds=seconds, as_json=as_json)
        return
    from llrag_cli.presets import preset_names

    with console.working("inspecting"):
        machine = _machine(device)
        rows = [_backbone_row(name, plan, rag=rag, device=device) for name in preset_names()]
    if as_json:
        console.result_json({"machine": machine, "backbones": rows})
    else:
        _show_machine(machine, rows, seconds=seconds)


def _show_machine(machine: dict[str, str], rows: Sequence[dict[str, Any]], *, seconds: float) -> None:
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.formatting import human

    for name, value in machine.items():
        console.result(f"{name:<9} {value}")
    console.result("")
    table = Table("backbone", "weights", f"memory for {seconds:g} s", "", box=None, pad_edge=False)
    for row in rows:
        needs = [f"{human(row['device_bytes'])} on {row['device']}"]
        if row["host_bytes"]:
            needs.append(f"{human(row['host_bytes'])} on the host")
        if row["disk_bytes"]:
            needs.append(f"{human(row['disk_bytes'])} on disk")
        table.add_row(row["backbone"], row["weights"], ", ".join(needs), row["verdict"])
    console.result_table(table)


def _show_plans(name: str, plan: Plan, *, seconds: float, as_json: bool) -> None:
    """The plan of one backbone with each tier of the archive: parts in rows, tiers in columns."""
    from rich.table import Table
    from rich.text import Text

    from llrag_cli.cache.tiers import EXACT, TIERS
    from llrag_cli.cli import console
    from llrag_cli.config import LOCATIONS
    from llrag_cli.formatting import human

    with console.working("planning"):
        own = plan(name, ())
        if own.config.memory.retrieves:
            budgets = {str(tier): plan(name, [f"memory.archive={tier}"]) for tier in TIERS}
            auto = plan(name, ["memory.archive=auto"])
            chosen = _archive(auto) if auto.short is None else None
        else:
            budgets, chosen = {"no archive": own}, None
    rows = {title: _row(budget) for title, budget in budgets.items()}
    if as_json:
        console.result_json({"backbone": name, "seconds": seconds, "chosen": chosen, "archives": rows})
        return
    titles = [f"{tier} *" if tier == chosen else tier for tier in budgets]
    table = Table(f"{name}, {seconds:g} s", *titles, box=None, pad_edge=False)
    parts = dict.fromkeys((part.location, part.name) for budget in budgets.values() for part in budget.parts)
    for location in LOCATIONS:
        if not any(budget.total(location) for budget in budgets.values()):
            continue
        for where, part in parts:
            if where == location:
                sizes = [
                    sum(each.bytes for each in budget.parts if (each.location, each.name) == (location, part))
                    for budget in budgets.values()
                ]
                table.add_row(part, *(human(size) if size else "" for size in sizes))
        room = own.room(location)
        title = f"on {own.name_of(location)}" + ("" if room is None else f", of {human(room)}")
        totals = (human(each.total(location)) for each in budgets.values())
        table.add_row(*(Text(text, style="bold") for text in (title, *totals)))
        table.add_row()
    table.add_row("", *("fits" if row["verdict"] == "fits" else "does not fit" for row in rows.values()))
    console.result_table(table)
    if len(budgets) > 1:
        taken = "* chosen by `--archive auto`" if chosen else "no exact archive fits"
        console.result(f"{taken}; {', '.join(EXACT)} give the same video, the others nearly the same")


def _machine(device: str) -> dict[str, str]:
    import os
    import shutil

    import torch

    from llrag_cli.engine.devices import find_device
    from llrag_cli.files.ffmpeg import ffmpeg
    from llrag_cli.files.paths import weights_folder
    from llrag_cli.files.resources import free_memory
    from llrag_cli.formatting import human
    from llrag_cli.runs.statistics import versions

    try:
        encoder = ffmpeg()
    except LlragError as error:
        encoder = f"not found: {error.problem}"
    folder = existing = weights_folder()
    while not existing.exists():
        existing = existing.parent
    host = free_memory(None)
    memory = "free memory unknown" if host is None else f"{human(host)} free"
    machine = {
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "ffmpeg": encoder,
        "device": str(find_device(device)),
        "host": f"{os.cpu_count()} CPU cores, {memory}",
    }
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        machine[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {human(free)} free of {human(total)}"
    machine["attention"] = _attention(machine["device"])
    machine["decoder"] = _decoder(machine["device"])
    machine["weights"] = f"{folder}, {human(shutil.disk_usage(existing).free)} free on its disk"
    return machine


def _attention(device: str) -> str:
    """Which attention backend `auto` is: what trials on this GPU have found so far."""
    from llrag_cli.engine.attention import BACKENDS

    return _chosen(
        BACKENDS, device, lambda of: f"{of.get('batch', 1)} x {of['queries']} tokens that attend to {of['keys']}"
    )


def _decoder(device: str) -> str:
    """Which memory layout the full VAE decodes in: what trials on this GPU have found so far."""
    from llrag_cli.engine.decoding import MEMORY_LAYOUTS

    return _chosen(
        MEMORY_LAYOUTS,
        device,
        lambda of: f"latent frames of {of['height']}x{of['width']}{', compiled' if of['compiled'] else ''}",
    )


def _chosen(choice: Choice[Any], device: str, shape: Callable[[Mapping[str, Any]], str]) -> str:
    """What trials of a choice on a GPU have found so far, in a line."""
    import torch

    from llrag_cli.engine.trials import machine_of

    if not device.startswith("cuda"):
        return f"{choice.candidates[0]}, without a trial, on a CPU"
    found = [
        f"{trial.chosen} for {shape(trial.shape)} "
        f"({', '.join(f'{name} {time:.3g} ms' for name, time in trial.milliseconds.items())})"
        for trial in choice.kept(machine_of(torch.device(device)))
    ]
    return "; ".join(found) or "chosen by trial when a backbone is loaded for the first time"


def _archive(budget: Budget) -> str | None:
    from llrag_cli.memory.strategies import RetrievalMemory

    memory = budget.config.memory
    return memory.archive if isinstance(memory, RetrievalMemory) else None


def _row(budget: Budget) -> dict[str, Any]:
    """What a plan needs, and whether it fits."""
    from llrag_cli.config import LOCATIONS
    from llrag_cli.formatting import human

    row: dict[str, Any] = {f"{location}_bytes": budget.total(location) for location in LOCATIONS}
    row["parts"] = [{"name": part.name, "bytes": part.bytes, "location": part.location} for part in budget.parts]
    row["archive"] = _archive(budget)
    row["verdict"] = "fits"
    if (short := budget.short) is not None:
        largest = max((part for part in budget.parts if part.location == short), key=lambda part: part.bytes)
        row["verdict"] = f"does not fit: {human(largest.bytes)} for {largest.name}"
    return row


def _backbone_row(name: str, plan: Plan, *, rag: bool | None, device: str) -> dict[str, Any]:
    from llrag_cli.engine.devices import find_device
    from llrag_cli.files.paths import weights_folder
    from llrag_cli.models.family import family_of

    config = configuration(name, rag=rag)
    row: dict[str, Any] = {"backbone": name, "device": str(find_device(device)), "missing": []}
    try:
        missing = family_of(config).missing(config, weights_folder())
        row["missing"] = [str(path) for path in missing.values()]
        row["weights"] = "in the package" if family_of(config).bundled else "present"
        if missing:
            row["weights"] = f"{len(missing)} missing"
        row |= _row(plan(name, ()))
    except LlragError as error:
        nothing = {"device_bytes": 0, "host_bytes": 0, "disk_bytes": 0, "parts": []}
        return row | nothing | {"weights": "damaged", "verdict": error.problem}
    if row["verdict"] == "fits" and missing:
        row["verdict"] = f"fits; `llrag download weights {name}` first"
    return row
