"""The command root: options are parsed here, work is imported when it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.errors import LlragError

app = typer.Typer(
    name="llrag",
    help="Long videos from text, kept consistent by retrieval memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
download_app = typer.Typer(help="Fetch released weights or prompts.", no_args_is_help=True)
app.add_typer(download_app, name="download")
bench_app = typer.Typer(invoke_without_command=True)
app.add_typer(bench_app, name="bench", help="Compare memories on the same prompts and seeds; also `benchmark`.")
app.add_typer(bench_app, name="benchmark", hidden=True)
presets_app = typer.Typer(help="List the bundled presets, or print one.", invoke_without_command=True)
app.add_typer(presets_app, name="presets")

Rag = Annotated[bool, typer.Option("--rag/--no-rag", help="Recall past frames, or see the plain sliding window only")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset; repeatable")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="What is recalled: nearest, prompt, diverse, gate, uniform, random, deep-sink"),
]
Encoder = Annotated[Path | None, typer.Option(metavar="FILE", help="Retrieval encoder that past frames are found by")]
Archive = Annotated[
    str | None,
    typer.Option(
        metavar="TIER",
        help="Where the keys and values of past frames go: device, host, disk (the same video), host-int8, recompute "
        "(nearly the same); auto takes the first that fits",
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most memory to take, on the device and on the host each: 8GB; picks --archive"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto is the first GPU, else the CPU")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto suits backbone and device")]
To = Annotated[Path | None, typer.Option(help="Folder to put the files in; default: llrag's own, or LLRAG_WEIGHTS")]
FromSource = Annotated[str | None, typer.Option("--source", help="Where to take them from; --list says what there is")]
ShowList = Annotated[bool, typer.Option("--list", help="Say what there is: size, licence, source, present or not")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and stop")]
Force = Annotated[bool, typer.Option("--force", help="Fetch and replace what is already there")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]


def _version(*, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("llrag"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=lambda value: _version(asked=value)),
    ] = False,
) -> None:
    """Shared by all commands."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows, in a sentence")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="tiny (embedded), self-forcing, causal-forcing, longlive; more in `llrag presets`"),
    ] = None,
    rag: Rag = True,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[float, typer.Option(help="Length of the video; it is made in whole blocks of frames")] = 30.0,
    seed: Annotated[int, typer.Option(help="Same seed, same video")] = 0,
    image: Annotated[Path | None, typer.Option(help="Picture that opens the video; for frame-wise backbones")] = None,
    archive: Archive = None,
    memory_budget: MemoryBudget = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (with --prompts, of all runs); default: a new one in runs/")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line; one run folder each")] = None,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[
        bool, typer.Option("--offload", help="Keep weights on the host, bring them to the GPU layer by layer: slower")
    ] = False,
    attention: Annotated[
        str | None, typer.Option(metavar="BACKEND", help="Attention back end of diffusers: native, flash, sage, ...")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the backbone's layers: a slow start, then faster blocks")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Make a long video from a text prompt.

    The run folder holds video.mp4, run.json (settings, versions, timings) and memory.jsonl (what each block recalled).
    """
    from llrag_cli.commands.generate import GenerateRequest, run

    run(
        GenerateRequest(
            prompt=prompt,
            prompts=prompts,
            backbone=backbone,
            preset=preset,
            method="retrieval" if rag else "native",
            memory=memory,
            encoder=encoder,
            archive=archive,
            memory_budget=memory_budget,
            settings=tuple(settings or ()),
            seconds=seconds,
            seed=seed,
            image=image,
            out=out,
            device=device,
            dtype=dtype,
            offload=offload,
            attention=attention,
            compile=compile_,
            force=force,
            as_json=as_json,
        )
    )


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
    from llrag_cli.commands.download import DownloadRequest, run

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
    from llrag_cli.commands.download import DownloadRequest, run

    run(
        DownloadRequest(
            kind="prompts",
            names=tuple(names or ()),
            to=to,
            source=source,
            only=False,
            dtype="bfloat16",
            prune=False,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@app.command()
def collect(
    prompts: Annotated[Path, typer.Argument(help="Text file with one prompt a line")],
    out: Annotated[Path, typer.Option(help="Folder for the latents; begun again, it goes on where it stopped")],
    backbone: Annotated[str | None, typer.Option(help="As for generate")] = None,
    rag: Rag = False,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[float, typer.Option(help="Length of each video")] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise, and of the share that is drawn")] = 0,
    ratio: Annotated[float, typer.Option(help="Share of the prompts to draw, at most 1")] = 1.0,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Be worker I of N that fill the same folder")] = "1/1",
    batch: Annotated[int, typer.Option(help="Videos made together; changes speed and memory only")] = 1,
    preview: Annotated[bool, typer.Option("--preview", help="Also write each video as mp4")] = False,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Make videos of a prompt pool and keep their latents, to train the retrieval encoder on.

    One safetensors file a video, latent_000012.safetensors, with prompt, seed and backbone inside.
    """
    from llrag_cli.commands.collect import CollectRequest, run

    run(
        CollectRequest(
            prompts=prompts,
            out=out,
            backbone=backbone,
            preset=preset,
            method="retrieval" if rag else "native",
            memory=memory,
            encoder=encoder,
            settings=tuple(settings or ()),
            seconds=seconds,
            seed=seed,
            ratio=ratio,
            shard=shard,
            batch=batch,
            preview=preview,
            device=device,
            dtype=dtype,
            as_json=as_json,
        )
    )


@app.command("train-encoder")
def train_encoder(
    latents: Annotated[Path, typer.Option(help="Folder that `llrag collect` filled, or of the original's latent_*.pt")],
    out: Annotated[Path, typer.Option(help="File for the best encoder; what else there is goes beside it")],
    preset: Annotated[
        str | None, typer.Option(help="wan, tiny or a file; by default what suits the size of the latents")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the videos; default: the preset's")] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier training stopped")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where one has been trained")] = False,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16; auto is bf16 on a GPU that has it")] = "auto",
    track: Annotated[str | None, typer.Option(help="Also report to tensorboard or wandb")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto is the GPU if there is one")] = "auto",
    as_json: Json = False,
) -> None:
    """Train the retrieval encoder: reconstruction, Window Temporal Delta Loss and smoothness.

    Several GPUs: `accelerate launch -m llrag_cli train-encoder ...`.
    """
    from llrag_cli.commands.train_encoder import TrainEncoderRequest, run

    run(
        TrainEncoderRequest(
            latents=latents,
            out=out,
            preset=preset,
            epochs=epochs,
            settings=tuple(settings or ()),
            resume=resume,
            force=force,
            precision=precision,
            track=track,
            device=device,
            as_json=as_json,
        )
    )


@app.command("evaluate-encoder")
def evaluate_encoder(
    encoders: Annotated[
        list[Path] | None, typer.Argument(help="Encoders to compare; default: the embedded one")
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Judge on these latents, without known answers; default: the sprite world")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table and picture")] = None,
    videos: Annotated[int, typer.Option(help="Videos to judge on")] = 24,
    seconds: Annotated[float, typer.Option(help="Length of each, in the sprite world")] = 160.0,
    count: Annotated[int, typer.Option(help="K: frames recalled for each query")] = 6,
    vision: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also compare a vision model of transformers, by name or folder")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes")] = 0,
    as_json: Json = False,
) -> None:
    """Measure how well keys find what matters: retrieval encoders beside average pooling and random projection."""
    from llrag_cli.commands.evaluate_encoder import EvaluateEncoderRequest, run

    run(
        EvaluateEncoderRequest(
            encoders=tuple(encoders or ()),
            latents=latents,
            out=out,
            videos=videos,
            seconds=seconds,
            count=count,
            vision=vision,
            seed=seed,
            as_json=as_json,
        )
    )


@app.command()
def inspect(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `llrag generate` made")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for memory.png and memory.html; default: the run's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run recalled when: a map, thumbnails, and how it used its memory."""
    from llrag_cli.commands.inspect import InspectRequest, run

    run(InspectRequest(run=run_folder, out=out, as_json=as_json))


@app.command()
def doctor(
    seconds: Annotated[float, typer.Option(help="Length of the video to plan memory for")] = 30.0,
    backbone: Annotated[
        str | None, typer.Option(help="Show the whole plan of one backbone, part by part, for each archive")
    ] = None,
    rag: Rag = True,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="Plan with weights kept on the host")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has, which weights are here, and whether each backbone fits into its memory."""
    from llrag_cli.commands.doctor import DoctorRequest, run

    run(
        DoctorRequest(
            seconds=seconds,
            backbone=backbone,
            method="retrieval" if rag else "native",
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
            offload=offload,
            as_json=as_json,
        )
    )


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of golden vectors: NAME.json with NAME.safetensors")],
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Replay golden vectors through the engine and compare; exit code 1 if a quantity is out of tolerance."""
    from llrag_cli.commands.verify import run

    run(folder, device=device, dtype=dtype, as_json=as_json)


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
    seed: Annotated[int, typer.Option(help="The first seed, also of the draw")] = 0,
    settings: Set = None,
    out: Annotated[Path, typer.Option(help="Folder; begun again, it goes on where it stopped")] = Path("bench"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and stop")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Compare memories: the same prompts and seeds under each, made, scored, compared in pairs.

    Writes results.json, results.csv and report.html into the folder. Needs the extra `metrics`.
    """
    if context.invoked_subcommand is not None:
        return
    from llrag_cli.commands.bench import BenchRequest, run

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
            device=device,
            dtype=dtype,
            as_json=as_json,
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
    as_json: Json = False,
) -> None:
    """Score any video: consistency, motion and drift, in one pass and flat memory.

    Needs the extra `metrics`: pip install 'llrag[metrics]'.
    """
    from llrag_cli.commands.bench import ScoreRequest, score_videos

    score_videos(ScoreRequest(videos=tuple(videos), group_by=group_by, strict=strict, as_json=as_json))


@presets_app.callback()
def presets(context: typer.Context, as_json: Json = False) -> None:
    """List the bundled presets, or print one."""
    if context.invoked_subcommand is None:
        from llrag_cli.commands.presets import list_presets

        list_presets(as_json=as_json)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="A bundled preset, or a preset file")],
    rag: Rag = True,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Print one configuration, resolved, with every setting."""
    from llrag_cli.commands.presets import show

    show(name, method="retrieval" if rag else "native", settings=tuple(settings or ()), as_json=as_json)


def main() -> None:
    """The one place where an error becomes a message and an exit code."""
    try:
        app()
    except LlragError as error:
        typer.echo(f"error: {error.problem}\n\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
