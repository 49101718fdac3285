"""``llrag studio`` and ``llrag watch``: the studio page, in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import Attention, Compile, Device, Dtype, Fast, Offload, ShareBuffers
from llrag_cli.cli.serve import Backbones, Engine, Runs, require_extra, run, settings_of

StudioPort = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on; default: 8000, or a free one if it is taken")
]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser")]


def studio(
    runs: Runs = Path("runs"),
    backbones: Backbones = None,
    port: StudioPort = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    attention: Attention = "auto",
    compile_: Compile = False,
    sharing: ShareBuffers = "none",
    fast: Fast = False,
    engine: Engine = "local",
    browser: Browser = True,
) -> None:
    """Open the studio: write a scene, watch it while it is generated, direct it, compare takes.

    Serves the page to this machine alone, until Ctrl-C. `llrag serve` serves
    it to others, and to programs.
    """
    require_extra()
    settings = settings_of(
        backbones=backbones, runs=runs, device=device, dtype=dtype, engine=engine,
        computing=(offload, attention, compile_, sharing, fast),
    )  # fmt: skip
    run(settings, port, browse=browser)


def watch(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a video")],
    port: StudioPort = None,
    browser: Browser = True,
) -> None:
    """Watch a run in the browser, also while another process generates it.

    The page shows the runs of the same folder, and changes none of them.
    """
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.serve.settings import ServeSettings

    RunFolder(path).read_record()
    require_extra()
    from llrag_cli.serve.folders import identifier_of
    from llrag_cli.serve.models import offered

    folder = path.resolve()
    settings = ServeSettings(runs=folder.parent, models=offered(()), workers=0)
    run(settings, port, browse=browser, fragment=f"#/videos/{identifier_of(folder.name)}")
