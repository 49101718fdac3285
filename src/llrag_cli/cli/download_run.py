"""``llrag download``: say what will be fetched, fetch it, say what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.download.catalogue import Kind, Source, catalogue, choose
from llrag_cli.errors import LlragError, UsageError, closest
from llrag_cli.formatting import counted

if TYPE_CHECKING:
    from llrag_cli.download.plan import Wanted

BACKBONES = ("self-forcing", "causal-forcing", "longlive")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class DownloadRequest:
    """What was asked for on the command line."""

    kind: Kind
    names: tuple[str, ...]
    to: Path | None
    force: bool
    show_list: bool
    dry_run: bool
    as_json: bool
    source: str | None = None
    only: bool = False
    dtype: str = "bfloat16"
    prune: bool = False


def run(request: DownloadRequest) -> None:
    """List, plan, or fetch."""
    from llrag_cli.files.paths import weights_folder

    folder = request.to or (weights_folder().parent / "prompts" if request.kind == "prompts" else weights_folder())
    if request.dtype not in DTYPES:
        raise UsageError(f"weights cannot be kept as `{request.dtype}`", hint=closest(request.dtype, DTYPES))
    if request.show_list:
        _list(request, folder)
        return
    names = request.names or (BACKBONES if request.kind == "weights" else ("all",))
    chosen = choose(request.kind, names, source=request.source, only=request.only)
    _fetch(request, chosen, folder)


def _list(request: DownloadRequest, folder: Path) -> None:
    from llrag_cli.download.plan import place
    from llrag_cli.formatting import human

    rows: list[dict[str, Any]] = []
    for name, item in catalogue().items(request.kind).items():
        source_name, source = next(iter(item.sources.items()))
        present = all(
            any(folder.glob(file.to + "*")) if file.to.endswith("/") else place(folder, file, file.path).exists()
            for file in source.files
        )
        rows.append(
            {
                "name": name,
                "about": item.about,
                "bytes": item.bytes,
                "licence": source.licence,
                "source": source_name,
                "repository": source.repo,
                "alternatives": [other for other in item.sources if other != source_name],
                "needs": list(item.needs),
                "present": present,
            }
        )
    if request.as_json:
        console.result_json(rows)
        return
    table = Table("name", "about", "about this large", "licence", "from", "", box=None, pad_edge=False)
    for row in rows:
        others = f" (or --source {', '.join(row['alternatives'])})" if row["alternatives"] else ""
        table.add_row(
            row["name"],
            row["about"],
            human(row["bytes"]),
            row["licence"],
            f"{row['repository']}{others}",
            "present" if row["present"] else "",
        )
    console.result_table(table)
    console.note(f"into {folder}")


def _fetch(request: DownloadRequest, chosen: list[tuple[str, Source]], folder: Path) -> None:
    from llrag_cli.download.plan import plan, require_room
    from llrag_cli.formatting import human

    with console.working("asking the hub"):
        wanted = plan(chosen, folder, dtype=request.dtype, force=request.force)
    missing = [file for file in wanted if file.state == "missing"]
    pending = [file for file in wanted if file.state != "present"]
    total = sum(file.bytes for file in missing)
    if request.dry_run:
        if request.as_json:
            console.result_json([_row(file, folder) for file in wanted])
            return
        table = Table("item", "size", "", "licence", box=None, pad_edge=False)
        table.add_column("file", overflow="fold")
        table.add_column("to", overflow="fold")
        for file in wanted:
            table.add_row(
                file.item,
                human(file.bytes),
                file.state,
                file.licence,
                f"{file.repo}/{file.path}",
                str(file.target.relative_to(folder)),
            )
        console.result_table(table)
    here = len(wanted) - len(missing)
    console.note(
        f"{human(total)} to fetch in {counted(len(missing), 'file')}, {counted(here, 'file')} here; into {folder}"
    )
    require_room(wanted, folder, dtype=request.dtype)
    if request.dry_run:
        return
    if pending:
        from llrag_cli.download.fetch import fetch

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LlragError(
                f"`{folder}` cannot be made: {(error.strerror or str(error)).lower()}",
                hint="choose another with `--to`",
            ) from None
        with console.download(total) as advance:
            fetch(pending, folder, dtype=request.dtype, prune=request.prune, advance=advance)
        originals = sum(file.bytes for file in pending if file.spec.convert)
        if originals and not request.prune:
            console.note(f"the originals of what was converted, {human(originals)}, stay in the hub's cache (--prune)")
    if request.as_json:
        console.result_json([_row(file, folder) for file in wanted])
    else:
        console.result(str(folder))


def _row(file: Wanted, folder: Path) -> dict[str, Any]:
    return {
        "item": file.item,
        "repository": file.repo,
        "commit": file.commit,
        "path": file.path,
        "to": str(file.target.relative_to(folder)),
        "bytes": file.bytes,
        "sha256": file.sha256,
        "licence": file.licence,
        "state": file.state,
    }
