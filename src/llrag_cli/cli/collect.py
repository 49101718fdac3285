"""``llrag collect``: latents of a prompt pool, for training the retrieval encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llrag_cli.batch.executors import Engine, parse_engine
from llrag_cli.cli import console
from llrag_cli.cli.gather import gather, require_all
from llrag_cli.errors import UsageError
from llrag_cli.files.prompts import read_prompt_file
from llrag_cli.formatting import counted
from llrag_cli.presets import Method, asked_for, load_config, memory_settings
from llrag_cli.runs.record import require_length

if TYPE_CHECKING:
    from llrag_cli.batch.collect import NumberedPrompt
    from llrag_cli.batch.jobs import PipelineSpec


@dataclass(frozen=True)
class CollectRequest:
    """What was asked for on the command line."""

    prompts: Path
    out: Path
    backbone: str | None
    preset: Path | None
    method: Method
    memory: str | None
    encoder: Path | None
    settings: tuple[str, ...]
    seconds: float
    seed: int
    ratio: float
    batch: int
    preview: bool
    device: str
    dtype: str
    as_json: bool
    engine: str = "local"


def run(request: CollectRequest) -> None:
    """Make the videos of a request and keep their latents."""
    prompts = read_prompt_file(request.prompts)
    require_length(request.seconds)
    if not 0 < request.ratio <= 1:
        raise UsageError(f"a share of {request.ratio:g} cannot be drawn", hint="`--ratio` is more than 0, at most 1")
    if request.batch < 1:
        raise UsageError(f"a batch of {request.batch} cannot be made", hint="`--batch` is at least 1")
    engine = parse_engine(request.engine)
    named = asked_for(backbone=request.backbone, preset=request.preset)
    settings = (*memory_settings(request.method, recall=request.memory, encoder=request.encoder), *request.settings)
    load_config(named or "tiny", method=request.method, settings=settings)  # a typo is reported here
    with console.working("loading"):
        from llrag_cli.batch.collect import collect, draw_prompts
        from llrag_cli.batch.jobs import PipelineSpec
        from llrag_cli.engine.pipeline import Pipeline, default_backbone, memory_plan
        from llrag_cli.runs.latents import LatentFolder

        config = load_config(named or default_backbone(), method=request.method, settings=settings)
        chosen = draw_prompts(prompts, ratio=request.ratio, seed=request.seed)
        folder = LatentFolder(request.out)
        folder.begin(
            {
                "config": config.model_dump(mode="json"),
                "prompts_sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
                "prompts": len(prompts),
                "ratio": request.ratio,
                "seconds": request.seconds,
                "seed": request.seed,
                "latent_frames": config.latent_frames(request.seconds),
            }
        )
        missing = [each for each in chosen if not folder.file(each.number).exists()]
        if missing:
            budget = memory_plan(
                config, device=request.device, dtype=request.dtype, seconds=request.seconds, batch=request.batch
            )
            console.note(budget.sentence())
            budget.require()
            config = budget.config
            prompts = [each.prompt for each in missing]
            if engine is None:
                pipeline = Pipeline.load(config, device=request.device, dtype=request.dtype, prompts=prompts)
    console.note(f"{counted(len(missing), 'video')} to make, {len(chosen) - len(missing)} here; into {request.out}")
    if missing and engine is not None:
        spec = PipelineSpec(config, request.device, request.dtype, prompts=tuple(prompts))
        _collect_elsewhere(request, engine, spec, missing)
    elif missing:
        blocks = config.latent_frames(request.seconds) // config.backbone.frames_per_block
        with console.counting(
            f"collecting {config.name} {config.method}", total=len(missing) * blocks, goes_on="the same command"
        ) as advance:
            for _ in collect(
                pipeline,
                chosen,
                folder,
                seconds=request.seconds,
                seed=request.seed,
                batch=request.batch,
                preview=request.preview,
                on_block=advance,
            ):
                pass
    if request.as_json:
        rows = [
            {"number": each.number, "prompt": each.prompt, "file": str(folder.file(each.number))} for each in chosen
        ]
        console.result(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        console.result(str(request.out))


def _collect_elsewhere(
    request: CollectRequest, engine: Engine, spec: PipelineSpec, missing: Sequence[NumberedPrompt]
) -> None:
    """Make what is missing as jobs of an engine, a batch each."""
    from llrag_cli.batch.jobs import LatentsJob, collect_latents

    jobs = [
        LatentsJob(
            spec,
            tuple(missing[first : first + request.batch]),
            request.out.resolve(),
            request.seconds,
            request.seed,
            request.preview,
        )
        for first in range(0, len(missing), request.batch)
    ]
    outcomes = gather(
        engine,
        collect_latents,
        jobs,
        title=f"collecting {spec.config.name} {spec.config.method}, {request.engine}",
        total=len(missing),
        made=lambda ended: sum(outcome.result or 0 for outcome in ended),
    )
    require_all(outcomes, [", ".join(str(each.number) for each in job.prompts) for job in jobs])
