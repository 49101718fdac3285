"""``llrag collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import (
    BackboneName,
    Device,
    Dtype,
    Encoder,
    EngineName,
    Json,
    Memory,
    Rag,
    Seconds,
    Set,
    configuration,
)
from llrag_cli.cli.prompts import require_understood
from llrag_cli.errors import UsageError


def collect(
    prompts: Annotated[Path, typer.Argument(help="Text file with one prompt per line")],
    out: Annotated[Path, typer.Option(help="Folder for the latents; repeating the command continues")],
    backbone: BackboneName = None,
    rag: Rag = False,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[float, typer.Option(help="Length of each video", **Seconds)] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the sample of prompts")] = 0,
    ratio: Annotated[float, typer.Option(help="Fraction of the prompts to sample, at most 1")] = 1.0,
    batch: Annotated[int, typer.Option(help="Videos generated together; affects speed and memory only")] = 1,
    preview: Annotated[bool, typer.Option("--preview", help="Also write each video as mp4")] = False,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    """Generate videos of many prompts and keep their latents, as training data for the retrieval encoder.

    One safetensors file per video, latent_000012.safetensors, with prompt, seed
    and backbone in its metadata. The original's corpus was LongLive without
    retrieval, sink 3, 90 latent frames, ratio 0.1.
    """
    import hashlib

    from llrag_cli.batch.executors import parse_engine
    from llrag_cli.cli import console
    from llrag_cli.cli.gather import gather, require_all
    from llrag_cli.files.durable import require_own
    from llrag_cli.files.prompts import read_prompt_file
    from llrag_cli.formatting import counted
    from llrag_cli.models.default import default_backbone
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.record import require_length

    texts = read_prompt_file(prompts)
    require_length(seconds)
    if not 0 < ratio <= 1:
        raise UsageError(f"a fraction of {ratio:g} cannot be sampled", hint="`--ratio` is more than 0 and at most 1")
    if batch < 1:
        raise UsageError(f"a batch of {batch} cannot be generated", hint="`--batch` is at least 1")
    where = parse_engine(engine)
    rag = None if memory is not None and not rag else rag  # a strategy implies retrieval
    config = configuration(backbone, rag=rag, memory=memory, encoder=encoder, settings=settings or ())
    RunFolder(out).require_writable()
    with console.working("loading"):
        from llrag_cli.batch.collect import collect as collect_videos
        from llrag_cli.batch.collect import draw_prompts
        from llrag_cli.batch.jobs import LatentsJob, PipelineSpec, collect_latents
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.runs.latents import LatentFolder

        if backbone is None and (name := default_backbone()) != "tiny":
            config = configuration(name, rag=rag, memory=memory, encoder=encoder, settings=settings or ())
        drawn = draw_prompts(texts, ratio=ratio, seed=seed)
        require_understood(config, [prompt.prompt for prompt in drawn])
        folder = LatentFolder(out)
        common = {
            "config": config.model_dump(mode="json"),
            "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
            "prompts": len(texts),
            "ratio": ratio,
            "seconds": seconds,
            "seed": seed,
            "latent_frames": config.latent_frames(seconds),
        }
        folder.require_same(common)
        for prompt in drawn:
            require_own(folder.file(prompt.number))
        missing = [prompt for prompt in drawn if not folder.file(prompt.number).exists()]
        if missing:
            budget = memory_plan(
                config,
                device=device,
                dtype=dtype,
                seconds=seconds,
                batch=batch,
                prompts=[prompt.prompt for prompt in missing],
            )
            console.note(budget.sentence())
            budget.require()
            config = budget.config
        folder.begin(common)
    console.note(f"{counted(len(missing), 'video')} to generate, {len(drawn) - len(missing)} present; folder: {out}")
    needed = tuple(prompt.prompt for prompt in missing)
    if missing and where is not None:
        spec = PipelineSpec(config, device, dtype, prompts=needed)
        jobs = [
            LatentsJob(spec, tuple(missing[first : first + batch]), out.resolve(), seconds, seed, preview)
            for first in range(0, len(missing), batch)
        ]
        outcomes = gather(
            where,
            collect_latents,
            jobs,
            title=f"collecting {config.label}, {engine}",
            total=len(missing),
            completed=lambda ended: sum(outcome.result or 0 for outcome in ended),
        )
        require_all(outcomes, [", ".join(str(prompt.number) for prompt in job.prompts) for job in jobs])
    elif missing:
        with console.working("loading"):
            pipeline = Pipeline.load(config, device=device, dtype=dtype, prompts=needed)
        blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
        with console.counting(
            f"collecting {config.label}", total=len(missing) * blocks, resume_with="the same command"
        ) as advance:
            for _ in collect_videos(
                pipeline, drawn, folder, seconds=seconds, seed=seed, batch=batch, preview=preview, on_block=advance
            ):
                pass
    if as_json:
        console.result_json(
            [
                {"number": prompt.number, "prompt": prompt.prompt, "file": str(folder.file(prompt.number))}
                for prompt in drawn
            ]
        )
    else:
        console.result(str(out))
