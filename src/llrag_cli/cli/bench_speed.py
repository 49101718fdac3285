"""``llrag bench speed``: how fast videos are generated, and what each memory costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Attention, Compile, CudaGraphs, Device, Dtype, Fast, Json, Set, require_recordable

if TYPE_CHECKING:
    from llrag_cli.config import ModelShape, RunConfig

SCHEMA = 2
TABLE: Any = {"rich_help_panel": "A table"}


def bench_speed(
    backbone: Annotated[
        str | None,
        typer.Option(help="Bundled preset or YAML file; default: tiny, or self-forcing with random weights"),
    ] = None,
    memories: Annotated[
        list[str] | None,
        typer.Option(
            "--memory",
            metavar="STRATEGY",
            help="Memory strategy; repeatable; the first is the baseline; default: none and nearest",
        ),
    ] = None,
    settings: Set = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Use random weights of the same shape: nothing to download")
    ] = False,
    shape_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Shape of a model with random weights: a YAML file, or its transformer/config.json",
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(help="Timed blocks of each memory")] = 20,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Untimed blocks before them; default: until the window is full and every block retrieves K frames"
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "auto",
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    fast: Fast = False,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--choice",
            metavar="WORDS",
            help="A row of a table of speed and memory: eager or compiled, with +graphs for CUDA graphs, +tiny "
            "for the tiny decoder, +int8 or +fp8 for eight-bit layers, such as compiled+tiny; repeatable",
            **TABLE,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="A table of all choices that the backbone has; `llrag verify` first", **TABLE)
    ] = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder of the table; the same command measures only what is missing there", **TABLE),
    ] = Path("bench-speed"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands that would fill the table, then stop", **TABLE)
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown", **TABLE)] = False,
    as_json: Json = False,
) -> None:
    """Measure generation speed: frames per second, time to the first frames and of each part, ratios of memories.

    Memories take turns, block by block, in one process. Prompts are random embeddings: no text encoder is needed.

    --all or --choice fill a table, each row measured in its own process.
    A choice that crashes or runs out of memory is a row that says so.
    """
    from llrag_cli.cli import console
    from llrag_cli.errors import LlragError, UsageError
    from llrag_cli.evaluation.grid import strategy_variant
    from llrag_cli.models.family import family_of

    if blocks < 1 or (warmup is not None and warmup < 0):
        raise UsageError("nothing to time", hint="`--blocks` is at least 1, `--warmup` at least 0")
    shape = _shape(shape_file, random_weights=random_weights)
    source = backbone or ("self-forcing" if shape else "tiny")
    configs = {
        memory: strategy_variant(memory).config(source, settings or ()) for memory in memories or ("none", "nearest")
    }
    config = next(iter(configs.values()))
    if shape is not None and family_of(config).bundled:
        raise UsageError(
            "the embedded model has one size and comes with its weights",
            hint="leave out `--random-weights` and `--config`, or choose another `--backbone`",
        )
    require_recordable(device, cuda_graphs=cuda_graphs, offload=False, sharing="none")
    if choices or every:
        for option, is_given in (("compile", compile_), ("cuda-graphs", cuda_graphs)):
            if is_given:
                raise UsageError(
                    f"`--{option}` cannot be combined with `--choice` and `--all`",
                    hint="choices say it themselves, such as `--choice compiled+graphs`",
                )
        from llrag_cli.cli.bench_speed_table import Request, chosen, measure_table, show_plan

        if shape is None:
            for needed in configs.values():
                _require_files(needed)
        request = Request(
            choices=chosen(choices or (), every=every, configs=[*configs.values()], device=device),
            memories=tuple(configs),
            common=_arguments(
                source, [*configs], settings or (), shape_file, random_weights, blocks, warmup, attention, fast
            ),
            device=device,
            dtype=dtype,
            out=out,
            as_json=as_json,
            markdown=markdown,
        )
        if dry_run:
            show_plan(request)
        else:
            measure_table(request, config)
        return
    for option, is_given in (("dry-run", dry_run), ("markdown", markdown)):
        if is_given:
            raise UsageError(f"`--{option}` applies to a table", hint="name rows with `--choice`, or use `--all`")
    with console.working("loading"):
        from llrag_cli.engine.devices import find_device, find_dtype
        from llrag_cli.engine.execution import Execution
        from llrag_cli.evaluation.speed import (
            Meter,
            load,
            measure,
            plans_of,
            seconds_of,
            steady_after,
            summary,
            together,
        )
        from llrag_cli.runs.statistics import versions

        where = find_device(device)
        kind = find_dtype(dtype, where, family=family_of(config))
        if shape is None:
            for needed in configs.values():
                _require_files(needed)
        steady = max(map(steady_after, configs.values()))
        warmup = steady if warmup is None else warmup
        if warmup < steady:
            console.warn(f"block times are stable only after {steady} blocks; the warm-up has {warmup}")
        seconds = seconds_of(config, blocks=blocks, warmup=warmup)
        plans = plans_of(configs, seconds=seconds, shape=shape, device=where, dtype=kind, cuda_graphs=cuda_graphs)
        configs = {memory: planned.config for memory, planned in plans.items()}
        budget = together([*plans.values()])
        console.note(budget.sentence())
        try:
            budget.require()
        except LlragError as error:
            raise LlragError(
                error.problem, hint="one `--memory`, fewer `--blocks`, or smaller `--set backbone.height=` and `width`"
            ) from None
        how = Execution(attention=attention, compile=compile_, cuda_graphs=cuda_graphs, fast=fast)
        pipelines = load(configs, shape=shape, device=device, dtype=dtype, how=how)
        meter = Meter(pipelines)
    total = len(configs) * (warmup + 2 * blocks)
    with (
        tempfile.TemporaryDirectory() as folder,
        console.counting(f"timing {config.name}", total=total) as advance,
    ):
        times = measure(
            pipelines, blocks=blocks, warmup=warmup, folder=Path(folder), on_block=lambda: advance(1), meter=meter
        )
    told = summary(config, times)
    for memory, entry in told["memories"].items():
        entry |= {"planned_bytes": plans[memory].total("device"), "peak_bytes": meter.peaks[memory]}
    result = {
        "schema": SCHEMA,
        **_about(config, pipelines, random_weights=shape is not None),
        "attention": next(iter(pipelines.values())).backbone.attention,
        "compile": compile_,
        "cuda_graphs": cuda_graphs,
        "fast": fast,
        "blocks": blocks,
        "warmup": warmup,
        "decoder": config.video.decoder,
        "quantize": config.backbone.quantize,
        **told,
        "planned_bytes": budget.total("device"),
        "peak_memory_bytes": meter.together,
        "versions": versions(),
    }
    if as_json:
        console.result_json(result)
    else:
        _show(result)


def _arguments(
    source: str,
    memories: Sequence[str],
    settings: Sequence[str],
    shape_file: Path | None,
    random_weights: bool,
    blocks: int,
    warmup: int | None,
    attention: str,
    fast: bool,
) -> tuple[str, ...]:
    """The options that all rows of a table share, as they were given."""
    pairs = [("--backbone", source), *(("--memory", memory) for memory in memories)]
    pairs += [("--set", setting) for setting in settings]
    if shape_file is not None:
        pairs.append(("--config", str(shape_file)))
    pairs += [("--blocks", str(blocks)), *([] if warmup is None else [("--warmup", str(warmup))])]
    flags = [*(["--random-weights"] if random_weights else []), *(["--fast"] if fast else [])]
    return (*(part for pair in pairs for part in pair), "--attention", attention, *flags)


def _shape(file: Path | None, *, random_weights: bool) -> ModelShape | None:
    """The shape of a model with random weights; None for a model with its own weights."""
    from llrag_cli.config import ModelShape
    from llrag_cli.presets import load_shape

    if file is not None:
        return load_shape(file)
    return ModelShape() if random_weights else None


def _require_files(config: RunConfig) -> None:
    from llrag_cli.cli.hints import hint_for
    from llrag_cli.errors import LlragError, UsageError
    from llrag_cli.files.paths import weights_folder
    from llrag_cli.models.family import require_files

    try:
        require_files(config, weights_folder())
    except UsageError:
        raise
    except LlragError as error:
        raise LlragError(
            error.problem, hint=f"`--random-weights` measures the same sizes without them; {hint_for(error)}"
        ) from None


def _about(config: RunConfig, pipelines: Mapping[str, Any], *, random_weights: bool) -> dict[str, Any]:
    """The model, and the machine it runs on."""
    import torch

    pipeline = next(iter(pipelines.values()))
    device = pipeline.backbone.device
    on_gpu = device.type == "cuda"
    return {
        "backbone": config.name,
        "weights": "random" if random_weights else "loaded",
        "parameters": sum(parameter.numel() for parameter in pipeline.backbone.transformer.parameters()),
        "width": config.width,
        "height": config.height,
        "fps": config.backbone.fps,
        "frames_per_block": config.backbone.frames_per_block,
        "steps": len(config.sampler.steps),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "threads": torch.get_num_threads(),
        "dtype": str(pipeline.backbone.dtype).removeprefix("torch."),
    }


def _show(result: Mapping[str, Any]) -> None:
    """The result as a table, and a sentence for each ratio."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.formatting import counted, human

    memories, baseline = result["memories"], result["baseline"]
    device = result["device"] if result["device"] != "cpu" else f"cpu, {result['threads']} threads"
    console.result(
        f"{result['backbone']}, {result['weights']} weights, {result['parameters'] / 1e6:.4g} M parameters, "
        f"{result['width']}x{result['height']}, {result['dtype']} on {device}; "
        f"{result['blocks']} blocks of {counted(result['frames_per_block'], 'latent frame')} after {result['warmup']}\n"
    )
    table = Table("", box=None, pad_edge=False)
    for name in memories:
        table.add_column(name, justify="right")

    def row(heading: str, *path: str, style: str = "{:.3g}") -> None:
        cells = []
        for value in memories.values():
            for key in path:
                value = value[key]
            cells.append(style.format(value))
        table.add_row(heading, *cells)

    row("frames per second, end to end", "end_to_end", "pixel_fps")
    row("  without decoding and writing", "generation", "pixel_fps")
    row("latent frames per second, end to end", "end_to_end", "latent_fps")
    row("  without decoding and writing", "generation", "latent_fps")
    row("seconds per block, end to end", "end_to_end", "block_seconds")
    row("  without decoding and writing", "generation", "block_seconds")
    row("seconds until the first frames", "first_frames_seconds")
    for part in memories[baseline]["shares"]:
        row(f"share: {part.replace('_', ' ')}", "shares", part, style="{:.1%}")
    console.result_table(table)
    console.result("")
    for name, ratios in result["ratios"].items():
        for heading, ratio in (("", ratios["generation"]), (" with decoding and writing", ratios["with_decoding"])):
            console.result(
                f"{name} / {baseline}{heading}: {ratio['median']:.3f} "
                f"(middle half {ratio['quarter']:.3f} to {ratio['three_quarters']:.3f}; "
                f"mean {ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}])"
            )
    peak = result["peak_memory_bytes"]
    if peak is not None:
        held = "" if len(memories) == 1 else f", {len(memories)} memories together"
        console.result(f"peak memory{held}: {human(peak)}")
