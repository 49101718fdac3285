"""``llrag verify``: the engine against golden vectors."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer
from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.errors import UsageError


def run(folder: Path, *, device: str, dtype: str, as_json: bool) -> None:
    """Replay every case in a folder, print a table, exit 1 if a quantity is out of tolerance."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder `{folder}`", hint="name a folder of golden vectors")
    with console.working("replaying"):
        from llrag_cli.engine.devices import find_device, find_dtype
        from llrag_cli.parity import Golden, replay

        place = find_device(device)
        golden = Golden(folder, device=place, dtype=find_dtype(dtype, place))
        checks = list(replay(golden))
    failed = [check for check in checks if not check.passed]
    if as_json:
        console.result_json([{**asdict(check), "passed": check.passed} for check in checks])
    else:
        table = Table("case", "quantity", "max error", "tolerance", "", box=None, pad_edge=False)
        last = ""
        for check in checks:
            verdict = "left out" if check.error is None else "ok" if check.passed else "FAILED"
            error = "-" if check.error is None else f"{check.error:.1e}"
            table.add_row(
                check.case if check.case != last else "",
                check.quantity,
                error,
                f"{check.tolerance:.0e}" if check.error is not None else "-",
                f"{verdict}  {check.note}".rstrip(),
                style="red" if not check.passed else None,
            )
            last = check.case
        console.result_table(table)
        kept = sum(check.error is not None for check in checks)
        console.result(f"{kept - len(failed)} of {kept} quantities within tolerance on {place}, {dtype}")
    if failed:
        raise typer.Exit(1)
