"""``llrag verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import Device, Dtype, Json
from llrag_cli.errors import UsageError


def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of golden vectors, NAME.json with NAME.safetensors; default: bundled")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Replay recorded vectors of the original system through the engine, and compare.

    Without a folder, a small bundled set: the first thing to run on a new GPU.
    Exits with 1 if a quantity is out of tolerance.
    """
    from dataclasses import asdict

    from rich.table import Table

    from llrag_cli.cli import console

    if folder is not None and not folder.is_dir():
        raise UsageError(
            f"no such folder: `{folder}`", hint="name a folder of golden vectors, or none for the bundled set"
        )
    with console.working("replaying"):
        from llrag_cli.engine.devices import find_device, find_dtype
        from llrag_cli.parity import BUNDLED, Golden, replay

        target = find_device(device)
        golden = Golden(folder or BUNDLED, device=target, dtype=find_dtype(dtype, target))
        checks = list(replay(golden))
    failed = [check for check in checks if not check.passed]
    if as_json:
        console.result_json([{**asdict(check), "passed": check.passed} for check in checks])
    else:
        table = Table("case", "quantity", "max error", "tolerance", "", box=None, pad_edge=False)
        previous = ""
        for check in checks:
            verdict = "skipped" if check.error is None else "ok" if check.passed else "FAILED"
            table.add_row(
                check.case if check.case != previous else "",
                check.quantity,
                "-" if check.error is None else f"{check.error:.1e}",
                "-" if check.error is None else f"{check.tolerance:.0e}",
                f"{verdict}  {check.note}".rstrip(),
                style="red" if not check.passed else None,
            )
            previous = check.case
        console.result_table(table)
        compared = sum(check.error is not None for check in checks)
        console.result(f"{compared - len(failed)} of {compared} quantities within tolerance on {target}, {dtype}")
    if failed:
        raise typer.Exit(1)
