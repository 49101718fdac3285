"""``llrag extend``, and ``llrag generate --resume``: continue a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llrag_cli.cache.sharing import Sharing
from llrag_cli.cli.options import (
    Archive,
    Attention,
    Compile,
    CudaGraphs,
    Device,
    Fast,
    Json,
    MemoryBudget,
    Offload,
    Seconds,
    ShareBuffers,
    archive_settings,
    encoder_settings,
    note_fast,
    require_recordable,
)
from llrag_cli.cli.prompts import require_understood, show_readings
from llrag_cli.errors import UsageError


def extend(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of the video")],
    seconds: Annotated[float, typer.Option(help="Length to add", **Seconds)] = 30.0,
    prompt: Annotated[str | None, typer.Option(help="What the new part shows; default: the prompt of the run")] = None,
    cut: Annotated[
        bool, typer.Option("--cut", help="Begin a new picture under the new prompt, instead of going on from the last")
    ] = False,
    archive: Archive = None,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    offload: Offload = False,
    sharing: ShareBuffers = "none",
    attention: Attention = "auto",
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    fast: Fast = False,
    as_json: Json = False,
) -> None:
    """Extend a finished video, keeping its memory, with the same prompt or a new one."""
    if prompt is not None and not prompt.strip():
        raise UsageError("the prompt is empty", hint="describe in a sentence what the new part shows, or omit it")
    if cut and prompt is None:
        raise UsageError("`--cut` begins a new picture, which needs a prompt", hint="say with `--prompt` what it shows")
    continue_run(
        run,
        added=seconds,
        prompt=prompt,
        cut=cut,
        archive=archive,
        memory_budget=memory_budget,
        device=device,
        offload=offload,
        sharing=sharing,
        attention=attention,
        compile_=compile_,
        cuda_graphs=cuda_graphs,
        fast=fast,
        as_json=as_json,
    )


def continue_run(
    path: Path,
    *,
    seconds: float | None = None,
    added: float | None = None,
    prompt: str | None = None,
    cut: bool = False,
    repeated: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    rag: bool | None = None,
    memory: str | None = None,
    encoder: Path | None = None,
    settings: Sequence[str] = (),
    archive: str | None,
    memory_budget: str | None,
    device: str,
    offload: bool,
    sharing: Sharing,
    attention: str,
    compile_: bool,
    cuda_graphs: bool,
    fast: bool,
    as_json: bool,
) -> None:
    """Generate what is missing of a run, up to ``seconds`` in all or with some ``added``.

    Settings that are ``repeated`` on the command line, and those after it, must be those of the run.
    """
    from llrag_cli.cli import console
    from llrag_cli.errors import AttentionError, RecordedAttentionError, RunDiffersError, RunLengthError
    from llrag_cli.formatting import parse_bytes
    from llrag_cli.memory.strategies import RetrievalMemory
    from llrag_cli.presets import with_settings
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.record import require_length, require_same

    require_recordable(device, cuda_graphs=cuda_graphs, offload=offload, sharing=sharing)
    for length in (seconds, added):
        if length is not None:
            require_length(length)
    limit = None if memory_budget is None else parse_bytes(memory_budget)
    folder = RunFolder(path)
    record = folder.read_record()
    config = record.config
    if backbone is not None and Path(backbone).stem != config.name:
        raise RunDiffersError(path, ["backbone"])
    changes = dict(repeated or {})
    opening = {name: changes.pop(name) for name in ("prompt", "image") if name in changes}
    strategy = "none" if rag is False else memory
    requested = with_settings(config, [*encoder_settings(encoder), *settings], memory=strategy)
    wanted = record.opening_with(**opening).model_copy(update={**changes, "config": requested})
    require_same(record, wanted, path)

    if prompt is not None:
        require_understood(config, [prompt])
    total = seconds or record.seconds + (added or 0.0)
    if total < record.seconds:
        raise RunLengthError(path, recorded=record.seconds, requested=total)
    if folder.is_finished(record, seconds=total):
        console.note(f"`{path}` is already complete")
    else:
        config.memory.require_ready()
        folder.require_writable()
        if isinstance(config.memory, RetrievalMemory):
            config = with_settings(config, archive_settings(archive or _renewed(config.memory.archive)))
        with console.working("loading"):
            from llrag_cli.engine.execution import Execution
            from llrag_cli.engine.pipeline import Pipeline, memory_plan
            from llrag_cli.runs.maker import resume_video

            prompts = [*record.timeline.prompts, *([prompt] if prompt else [])]
            budget = memory_plan(
                config,
                device=device,
                dtype=record.dtype,
                seconds=total,
                references=record.timeline.reference_count,
                pinned=record.timeline.pinned_frames,
                switches=record.timeline.switches or (prompt is not None and not cut),
                prompts=prompts,
                offload=offload,
                sharing=sharing,
                cuda_graphs=cuda_graphs,
                limit=limit,
                scratch=path,
            )
            console.note(budget.sentence())
            budget.require()
            config = budget.config
            recorded = record.attention if attention == "auto" else ""
            how = Execution(
                offload=offload,
                sharing=sharing,
                attention=recorded or attention,
                compile=compile_,
                decoder_layout=record.decoder_layout,
                cuda_graphs=cuda_graphs,
                fast=fast,
            )
            try:
                pipeline = Pipeline.load(config, device=device, dtype=record.dtype, how=how, prompts=prompts)
            except AttentionError as error:
                if not recorded:
                    raise
                raise RecordedAttentionError(path, error) from error
        note_fast(pipeline.backbone.device.type, fast=fast)
        if prompt is not None:
            show_readings(config, [prompt])
        blocks = config.latent_frames(total) // config.backbone.frames_per_block
        with console.generation(config.label, blocks=blocks, frame_rate=config.backbone.fps, folder=path) as update:
            record = resume_video(pipeline, folder, seconds=total, prompt=prompt, cut=cut, on_progress=update)
    if as_json:
        console.result_json({"folder": str(path), "video": str(folder.video), **record.model_dump(mode="json")})
    else:
        console.result(str(folder.video))


def _renewed(tier: str) -> str:
    """The exact tiers give the same video, so one that fits now is chosen again."""
    from llrag_cli.cache.tiers import EXACT

    return "auto" if tier in EXACT else tier
