"""``llrag bench speed``: how fast videos are made, and what each memory costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.cli.hints import hint_for
from llrag_cli.config import ModelShape, RunConfig
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.evaluation.grid import method_config
from llrag_cli.files.paths import weights_folder
from llrag_cli.formatting import counted, human
from llrag_cli.models.family import family_of, require_files
from llrag_cli.presets import METHODS, asked_for, load_shape


@dataclass(frozen=True)
class SpeedRequest:
    """What was asked for on the command line."""

    backbone: str | None
    methods: tuple[str, ...]
    preset: Path | None
    settings: tuple[str, ...]
    random_weights: bool
    config: Path | None
    blocks: int
    warmup: int | None
    device: str
    dtype: str
    attention: str | None
    compile: bool
    as_json: bool


def run(request: SpeedRequest) -> None:
    """Measure the methods of a request in turns, and show what comes of it."""
    if request.blocks < 1 or (request.warmup is not None and request.warmup < 0):
        raise UsageError("there is nothing to time", hint="`--blocks` is at least 1, `--warmup` at least 0")
    shape = _shape(request)
    source = asked_for(backbone=request.backbone, preset=request.preset) or ("self-forcing" if shape else "tiny")
    configs = {
        method: method_config(source, method, request.settings) for method in dict.fromkeys(request.methods or METHODS)
    }
    config = next(iter(configs.values()))
    if shape is not None and family_of(config).bundled:
        raise UsageError(
            "the embedded model has one size, and its weights are here",
            hint="leave `--random-weights` and `--config` out, or name another with `--backbone`",
        )
    with console.working("loading"):
        from llrag_cli.engine.devices import find_device, find_dtype
        from llrag_cli.engine.execution import Execution, require_attention
        from llrag_cli.evaluation.speed import load, measure, memory_needed, seconds_of, steady_after, summary
        from llrag_cli.files.paths import weights_folder
        from llrag_cli.planning import plan
        from llrag_cli.runs.maker import peak_memory, versions

        device = find_device(request.device)
        dtype = find_dtype(request.dtype, device, family=family_of(config))
        if request.attention is not None:
            require_attention(request.attention)
        if shape is None:
            for each in configs.values():
                _require_files(each)
        steady = max(map(steady_after, configs.values()))
        warmup = steady if request.warmup is None else request.warmup
        if warmup < steady:
            console.warn(f"a block costs what later ones cost only after {steady} of them; {warmup} are left out")
        seconds = seconds_of(config, blocks=request.blocks, warmup=warmup)
        configs = {
            method: plan(each, weights_folder(), device=device, dtype=dtype, seconds=seconds, shape=shape).config
            for method, each in configs.items()
        }
        budget = memory_needed([*configs.values()], seconds=seconds, shape=shape, device=device, dtype=dtype)
        console.note(budget.sentence())
        try:
            budget.require()
        except LlragError as error:
            raise LlragError(
                error.problem, hint="one `--method`, fewer `--blocks`, or smaller `--set backbone.height=` and `width`"
            ) from None
        how = Execution(attention=request.attention, compile=request.compile)
        pipelines = load(configs, shape=shape, device=request.device, dtype=request.dtype, how=how)
    total = len(configs) * (warmup + 2 * request.blocks)
    with (
        tempfile.TemporaryDirectory() as folder,
        console.counting(f"timing {config.name}", total=total) as advance,
    ):
        found = measure(
            pipelines,
            blocks=request.blocks,
            warmup=warmup,
            folder=Path(folder),
            on_block=lambda: advance(1),
        )
    result = {
        "schema": 1,
        **_about(request, config, pipelines),
        "blocks": request.blocks,
        "warmup": warmup,
        **summary(config, found),
        "peak_memory_bytes": peak_memory(device),
        "versions": versions(),
    }
    if request.as_json:
        console.result_json(result)
    else:
        _show(result)


def _shape(request: SpeedRequest) -> ModelShape | None:
    """The sizes of a model with random weights; None for the weights that are here."""
    if request.config is not None:
        return load_shape(request.config)
    return ModelShape() if request.random_weights else None


def _require_files(config: RunConfig) -> None:
    try:
        require_files(config, weights_folder())
    except UsageError:
        raise
    except LlragError as error:
        raise LlragError(
            error.problem, hint=f"`--random-weights` measures the same sizes without them; {hint_for(error)}"
        ) from None


def _about(request: SpeedRequest, config: RunConfig, pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, and on what."""
    import torch

    pipeline = next(iter(pipelines.values()))
    device = pipeline.backbone.device
    on_gpu = device.type == "cuda"
    return {
        "backbone": config.name,
        "weights": "random" if request.random_weights or request.config is not None else "loaded",
        "parameters": sum(parameter.numel() for parameter in pipeline.backbone.transformer.parameters()),
        "width": config.width,
        "height": config.height,
        "fps": config.backbone.fps,
        "frames_per_block": config.backbone.frames_per_block,
        "steps": len(config.sampler.steps),
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "threads": torch.get_num_threads(),
        "dtype": str(pipeline.backbone.dtype).removeprefix("torch."),
        "attention": request.attention,
        "compile": request.compile,
    }


def _show(result: Mapping[str, Any]) -> None:
    """The result as a table, and a sentence for each ratio."""
    methods, baseline = result["methods"], result["baseline"]
    place = result["device"] if result["device"] != "cpu" else f"cpu, {result['threads']} threads"
    console.result(
        f"{result['backbone']}, {result['weights']} weights, {result['parameters'] / 1e6:.4g} M parameters, "
        f"{result['width']}x{result['height']}, {result['dtype']} on {place}; "
        f"{result['blocks']} blocks of {counted(result['frames_per_block'], 'latent frame')} after {result['warmup']}\n"
    )
    table = Table("", box=None, pad_edge=False)
    for name in methods:
        table.add_column(name, justify="right")

    def row(heading: str, *path: str, style: str = "{:.3g}") -> None:
        cells = []
        for found in methods.values():
            for key in path:
                found = found[key]
            cells.append(style.format(found))
        table.add_row(heading, *cells)

    row("frames a second, end to end", "end_to_end", "pixel_fps")
    row("  without decoding and writing", "generation", "pixel_fps")
    row("latent frames a second, end to end", "end_to_end", "latent_fps")
    row("  without decoding and writing", "generation", "latent_fps")
    row("seconds a block, end to end", "end_to_end", "block_seconds")
    row("  without decoding and writing", "generation", "block_seconds")
    row("seconds until the first frames", "first_frames_seconds")
    for part in methods[baseline]["shares"]:
        row(f"share: {part.replace('_', ' ')}", "shares", part, style="{:.1%}")
    console.result_table(table)
    console.result("")
    for name, ratios in result["ratios"].items():
        for heading, found in (("", ratios["generation"]), (" with decoding and writing", ratios["with_decoding"])):
            console.result(
                f"{name} / {baseline}{heading}: {found['median']:.3f} "
                f"(middle half {found['quarter']:.3f} to {found['three_quarters']:.3f}; "
                f"mean {found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}])"
            )
    peak = result["peak_memory_bytes"]
    if peak is not None:
        held = "" if len(methods) == 1 else f", {len(methods)} methods together"
        console.result(f"peak memory{held}: {human(peak)}")
