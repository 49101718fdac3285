"""``llrag doctor``: what this machine can run, before it is tried."""

from __future__ import annotations

import os
import shutil
from typing import Any

from rich.table import Table

from llrag_cli import console
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.places import human, weights_folder
from llrag_cli.presets import load_config, preset_names


def run(*, seconds: float, rag: bool, device: str, dtype: str, offload: bool, as_json: bool) -> None:
    """Look around and report; problems are part of the report, not errors."""
    if not 0 < seconds < float("inf"):
        raise UsageError(f"memory for {seconds:g} seconds cannot be planned", hint="`--seconds` must be more than 0")
    with console.working("looking"):
        machine = _machine(device)
        rows = [
            _backbone(name, seconds=seconds, rag=rag, device=device, dtype=dtype, offload=offload)
            for name in preset_names()
        ]
    if as_json:
        console.result_json({"machine": machine, "backbones": rows})
        return
    for name, value in machine.items():
        console.result(f"{name:<9}{value}")
    console.result("")
    table = Table("backbone", "weights", f"memory for {seconds:g} s", "", box=None, pad_edge=False)
    for row in rows:
        needs = [f"{human(row['device_bytes'])} on {row['device']}"]
        if row["host_bytes"]:
            needs.append(f"{human(row['host_bytes'])} on the host")
        table.add_row(row["backbone"], row["weights"], ", ".join(needs), row["verdict"])
    console.result_table(table)


def _machine(device: str) -> dict[str, str]:
    import torch

    from llrag_cli.budget import free_memory
    from llrag_cli.files.video import ffmpeg
    from llrag_cli.pipeline import find_device
    from llrag_cli.runner import versions

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


def _backbone(name: str, *, seconds: float, rag: bool, device: str, dtype: str, offload: bool) -> dict[str, Any]:
    from llrag_cli.budget import plan
    from llrag_cli.pipeline import find_device, find_dtype
    from llrag_cli.weights import missing_files

    config = load_config(name, method="retrieval" if rag else "native")
    place = find_device(device)
    kind = find_dtype(dtype, place, family=config.backbone.family)
    folder = weights_folder()
    missing = missing_files(config, folder)
    row: dict[str, Any] = {"backbone": name, "device": str(place), "missing": [str(path) for path in missing.values()]}
    embedded = config.backbone.family == "tiny"
    row["weights"] = "in the package" if embedded else f"{len(missing)} missing" if missing else "present"
    try:
        budget = plan(config, folder, device=place, dtype=kind, seconds=seconds, offload=offload)
    except LlragError as error:  # damaged weights
        return row | {"device_bytes": 0, "host_bytes": 0, "parts": [], "verdict": error.problem}
    row["device_bytes"], row["host_bytes"] = budget.total("device"), budget.total("host")
    row["parts"] = [{"name": part.name, "bytes": part.bytes, "place": part.place} for part in budget.parts]
    try:
        budget.require(config)
        row["verdict"] = f"fits; `llrag download weights {name}` first" if missing else "fits"
    except LlragError:
        largest = max(budget.parts, key=lambda part: part.bytes if part.place == budget.short else 0)
        row["verdict"] = f"does not fit: {human(largest.bytes)} for {largest.name}"
    return row
