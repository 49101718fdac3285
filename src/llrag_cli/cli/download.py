"""``llrag download weights``, ``prompts`` and ``metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Json
from llrag_cli.files.paths import weights_folder

if TYPE_CHECKING:
    from llrag_cli.download.catalogue import Kind, Source
    from llrag_cli.download.plan import PlannedFile

BACKBONES = ("self-forcing", "causal-forcing", "longlive")
DTYPES = ("bfloat16", "float16", "float32")

download_app = typer.Typer(help="Download weights, prompts, or the models of the metrics.", no_args_is_help=True)

To = Annotated[Path | None, typer.Option(help="Folder to download into; default: LLRAG_WEIGHTS, or llrag's cache")]
FromSource = Annotated[str | None, typer.Option("--source", help="Repository to download from, by its name in --list")]
ShowList = Annotated[bool, typer.Option("--list", help="List what can be downloaded: size, licence, sources")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with exact sizes, and download nothing")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are already there")]


@download_app.command("weights")
def download_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="self-forcing, causal-forcing, longlive, encoder, vae, text-encoder, all; more in --list"),
    ] = None,
    to: To = None,
    source: FromSource = None,
    only: Annotated[
        bool, typer.Option("--only", help="Download the named items only, without what they require")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Dtype that backbones are stored in: bfloat16, float16 or float32")
    ] = "bfloat16",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove each original from the hub's cache after conversion")
    ] = False,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download weights from the Hugging Face hub: by default the three backbones and all they require.

    Respects HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
    """
    from llrag_cli.download.catalogue import choose
    from llrag_cli.errors import UsageError, closest

    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype `{dtype}`", hint=closest(dtype, DTYPES))
    folder = to or weights_folder()
    if show_list:
        _list("weights", folder, as_json=as_json)
        return
    chosen = choose("weights", names or BACKBONES, source=source, only=only)
    _download(chosen, folder, dtype=dtype, prune=prune, force=force, dry_run=dry_run, as_json=as_json)


@download_app.command("prompts")
def download_prompts(
    names: Annotated[list[str] | None, typer.Argument(help="moviegenbench, vidprom; default: both")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder to download into; default: `prompts` beside the weights")
    ] = None,
    source: FromSource = None,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download prompt files: the 128 MovieGenBench prompts and the VidProM prompts."""
    from llrag_cli.download.catalogue import choose

    folder = to or weights_folder().parent / "prompts"
    if show_list:
        _list("prompts", folder, as_json=as_json)
        return
    chosen = choose("prompts", names or ("all",), source=source)
    _download(chosen, folder, force=force, dry_run=dry_run, as_json=as_json)


@download_app.command("metrics")
def download_metrics(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="dino, dinov2, clip-b32, clip-l14, aesthetic, raft, mapping; default: all"),
    ] = None,
    to: To = None,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download the models that `llrag bench --backend official` uses: 3 GB."""
    from llrag_cli.download.catalogue import choose

    folder = to or weights_folder()
    if show_list:
        _list("metrics", folder, as_json=as_json)
        return
    _download(choose("metrics", names or ("all",)), folder, force=force, dry_run=dry_run, as_json=as_json)


def _list(kind: Kind, folder: Path, *, as_json: bool) -> None:
    """Print the catalogue; nothing is asked of the hub."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.download.catalogue import catalogue
    from llrag_cli.download.folder import target_path
    from llrag_cli.formatting import human

    rows: list[dict[str, Any]] = []
    for name, item in catalogue().items(kind).items():
        default, *alternatives = item.sources
        source = item.sources[default]
        present = all(
            any(folder.glob(file.to + "*")) if file.to.endswith("/") else target_path(folder, file, file.path).exists()
            for file in source.files
        )
        rows.append(
            {
                "name": name,
                "about": item.about,
                "bytes": item.bytes,
                "licence": source.licence,
                "source": default,
                "repository": source.repo,
                "alternatives": alternatives,
                "needs": list(item.needs),
                "present": present,
            }
        )
    if as_json:
        console.result_json(rows)
        return
    table = Table("name", "about", "size (estimate)", "licence", "repository", "", box=None, pad_edge=False)
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
    console.note(f"folder: {folder}")


def _download(
    chosen: list[tuple[str, Source]],
    folder: Path,
    *,
    dtype: str = "bfloat16",
    prune: bool = False,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Plan a download, print the plan, and carry it out unless it is a dry run."""
    from llrag_cli.cli import console
    from llrag_cli.download.folder import require_writable
    from llrag_cli.formatting import counted, human

    if not dry_run:
        require_writable(folder)

    from llrag_cli.download.fetch import fetch, totals
    from llrag_cli.download.plan import plan, require_room

    with console.working("asking the hub"):
        planned = plan(chosen, folder, dtype=dtype, force=force)
    missing = sum(file.state == "missing" for file in planned)
    total = totals(planned)
    if dry_run and not as_json:
        _print_plan(planned, folder)
    console.note(
        f"{human(total['fetch'])} to download in {counted(missing, 'file')}, "
        f"{counted(len(planned) - missing, 'file')} already here; folder: {folder}"
    )
    require_room(planned, folder, dtype=dtype)
    if not dry_run and any(file.state != "present" for file in planned):
        with console.download(total) as advance:
            fetch(planned, folder, dtype=dtype, prune=prune, advance=advance)
        if total["convert"] and not prune:
            console.note(
                f"the original checkpoints, {human(total['convert'])}, stay in the hub's cache (--prune removes them)"
            )
    if as_json:
        console.result_json([_row(file, folder) for file in planned])
    elif not dry_run:
        console.result(str(folder))


def _print_plan(planned: list[PlannedFile], folder: Path) -> None:
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.formatting import human

    table = Table("item", "size", "state", "licence", box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("target", overflow="fold")
    for file in planned:
        target = file.target.relative_to(folder)
        table.add_row(file.item, human(file.bytes), file.state, file.licence, f"{file.repo}/{file.path}", str(target))
    console.result_table(table)


def _row(file: PlannedFile, folder: Path) -> dict[str, Any]:
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
