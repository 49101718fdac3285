"""``llrag download`` and its subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import Json

download_app = typer.Typer(help="Fetch released weights, prompts, or models that metrics need.", no_args_is_help=True)

To = Annotated[Path | None, typer.Option(help="Folder to put the files in; default: llrag's own, or LLRAG_WEIGHTS")]
FromSource = Annotated[str | None, typer.Option("--source", help="Where to take them from; --list says what there is")]
ShowList = Annotated[bool, typer.Option("--list", help="Say what there is: size, licence, source, present or not")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and stop")]
Force = Annotated[bool, typer.Option("--force", help="Fetch and replace what is already there")]


@download_app.command("weights")
def download_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="self-forcing, causal-forcing, longlive, encoder, vae, text-encoder, all; more in --list"),
    ] = None,
    to: To = None,
    source: FromSource = None,
    only: Annotated[bool, typer.Option("--only", help="Leave out what a backbone needs besides its own files")] = False,
    dtype: Annotated[str, typer.Option(help="Type that backbones are kept in")] = "bfloat16",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove originals from the hub's cache once they are converted")
    ] = False,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fetch weights from the Hugging Face hub; without names, the three backbones and all they need.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
    """
    from llrag_cli.cli.download_run import DownloadRequest, run

    run(
        DownloadRequest(
            kind="weights",
            names=tuple(names or ()),
            to=to,
            source=source,
            only=only,
            dtype=dtype,
            prune=prune,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@download_app.command("prompts")
def download_prompts(
    names: Annotated[list[str] | None, typer.Argument(help="moviegenbench, vidprom; default: both")] = None,
    to: To = None,
    source: FromSource = None,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fetch prompt files: the 128 MovieGenBench prompts and the VidProM pool."""
    from llrag_cli.cli.download_run import DownloadRequest, run

    run(
        DownloadRequest(
            kind="prompts",
            names=tuple(names or ()),
            to=to,
            source=source,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


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
    """Fetch the models that `llrag bench --backend official` measures with: 3 GB."""
    from llrag_cli.cli.download_run import DownloadRequest, run

    run(
        DownloadRequest(
            kind="metrics",
            names=tuple(names or ()),
            to=to,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )
