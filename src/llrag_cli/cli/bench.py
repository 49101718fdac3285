"""``llrag bench`` and its subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import Attention, Backend, Compile, Device, Dtype, EngineName, Json, Set

bench_app = typer.Typer(invoke_without_command=True)


@bench_app.callback()
def bench(
    context: typer.Context,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Backbone to compare on; repeatable; default: tiny")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="native, retrieval, or a policy of --memory; repeatable; the first is compared with"),
    ] = None,
    horizon: Annotated[list[float] | None, typer.Option(help="Seconds; repeatable; default: 30")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line; tiny has its own")] = None,
    count: Annotated[int | None, typer.Option(help="Prompts to draw; default: all of the file, or 8")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds for each prompt")] = 1,
    seed: Annotated[int, typer.Option(help="First seed, also of the draw; of prompt n, 1000 (n - 1) more")] = 0,
    settings: Set = None,
    out: Annotated[Path, typer.Option(help="Folder; begun again, it goes on where it stopped")] = Path("bench"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and stop")] = False,
    backend: Backend = "offline",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    r"""Compare memories on the same prompts and seeds; also `benchmark`.

    Each makes the videos that are missing; all are scored, and compared in
    pairs: results.json, results.csv and report.html in the folder of --out.

    Needs the extra `metrics`: pip install 'llrag\[metrics]'.
    """
    if context.invoked_subcommand is not None:
        return
    from llrag_cli.cli.bench_run import BenchRequest, run

    run(
        BenchRequest(
            backbones=tuple(backbone or ()),
            methods=tuple(method or ()),
            horizons=tuple(horizon or ()),
            prompts=prompts,
            count=count,
            seeds=seeds,
            seed=seed,
            settings=tuple(settings or ()),
            out=out,
            dry_run=dry_run,
            backend=backend,
            device=device,
            dtype=dtype,
            as_json=as_json,
            engine=engine,
        )
    )


@bench_app.command("score")
def bench_score(
    videos: Annotated[list[Path], typer.Argument(help="Videos, or folders of videos")],
    group_by: Annotated[
        str | None, typer.Option(metavar="folder", help="Rank the folders that videos lie in against each other")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a file that is no video; else it is left out")
    ] = False,
    backend: Backend = "offline",
    device: Annotated[str, typer.Option(help="Where official models run: cpu, cuda or cuda:1; auto")] = "auto",
    as_json: Json = False,
) -> None:
    r"""Score any video: consistency, motion and drift, in one pass and flat memory.

    Needs the extra `metrics`: pip install 'llrag\[metrics]'.
    """
    from llrag_cli.cli.bench_run import ScoreRequest, score_videos

    score_videos(
        ScoreRequest(
            videos=tuple(videos), group_by=group_by, strict=strict, backend=backend, device=device, as_json=as_json
        )
    )


@bench_app.command("speed")
def bench_speed(
    backbone: Annotated[
        str | None, typer.Option(help="As for generate; default: tiny, or self-forcing with random weights")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="As for bench; default: native and retrieval; the first is compared with"),
    ] = None,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Need no weights: a model of the same size, never trained")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Sizes of a model to measure with random weights: YAML, or its transformer/config.json"
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(help="Blocks of each method that are timed")] = 20,
    warmup: Annotated[
        int | None, typer.Option(help="Blocks before them; default: until the window is full and memory recalls all")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = None,
    compile_: Compile = False,
    as_json: Json = False,
) -> None:
    """Measure how fast videos are made: frames a second, first frames, share of each part, and methods as ratios.

    Methods run in turns, block by block, in one process. Prompts are random embeddings: no text encoder is needed.
    """
    from llrag_cli.cli.bench_speed import SpeedRequest, run

    run(
        SpeedRequest(
            backbone=backbone,
            methods=tuple(method or ()),
            preset=preset,
            settings=tuple(settings or ()),
            random_weights=random_weights,
            config=config,
            blocks=blocks,
            warmup=warmup,
            device=device,
            dtype=dtype,
            attention=attention,
            compile=compile_,
            as_json=as_json,
        )
    )
