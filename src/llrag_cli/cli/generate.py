"""``llrag generate``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import (
    MANY,
    Archive,
    Attention,
    BackboneName,
    Compile,
    CudaGraphs,
    DecoderName,
    Device,
    Dtype,
    Encoder,
    EngineName,
    Fast,
    Json,
    Memory,
    MemoryBudget,
    Offload,
    Quantize,
    Rag,
    Seconds,
    Set,
    ShareBuffers,
    Size,
    configuration,
    given,
    note_fast,
    require_recordable,
)
from llrag_cli.cli.prompts import require_understood, show_readings
from llrag_cli.cli.scenes import (
    Footage,
    Pins,
    References,
    SceneFile,
    Takes,
    Then,
    planned,
    requested_scene,
    scene_configuration,
)
from llrag_cli.errors import RunExistsError, UsageError

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig
    from llrag_cli.planning import Budget
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.maker import Existing
    from llrag_cli.runs.record import RunRecord
    from llrag_cli.scenes.schema import Scene
    from llrag_cli.scenes.timeline import Timeline

# parameters that describe shots, and the options of those that are named otherwise
_OF_SHOTS = ("scene", "then", "video", "references", "pins", "takes")
MANY_PROMPTS = 8  # of more, only those are shown that are not understood completely
_OPTIONS = {"references": "reference", "pins": "pin"}


def generate(
    context: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(help="What the video shows: one sentence, in quotes")] = None,
    backbone: BackboneName = None,
    rag: Rag = None,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[
        float, typer.Option(help="Length of the video: 30, 90s, 2m, 1:30; rounded up to a whole block", **Seconds)
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same video")] = 0,
    size: Size = None,
    image: Annotated[
        Path | None, typer.Option(help="Picture that the video starts from; for frame-wise backbones")
    ] = None,
    scene: SceneFile = None,
    then: Then = None,
    video: Footage = None,
    references: References = None,
    pins: Pins = None,
    takes: Takes = None,
    archive: Archive = None,
    memory_budget: MemoryBudget = None,
    decoder: DecoderName = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (with --prompts, of all runs); default: a new one in runs/")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with one prompt per line, # for comments; each gets its own run folder", **MANY),
    ] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    sharing: ShareBuffers = "none",
    attention: Attention = "auto",
    quantize: Quantize = None,
    compile_: Compile = False,
    cuda_graphs: CudaGraphs = False,
    fast: Fast = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run in the folder")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue an interrupted run; --seconds may be longer")
    ] = None,
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    """Generate a long video from a text prompt, or from a scene of several shots.

    The run folder contains video.mp4, run.json (settings, versions, timings),
    memory.jsonl (frames retrieved for each block) and latents.safetensors.

    --resume continues an interrupted run. With --prompts and --out, repeat the
    same command to continue.
    """
    text = one_prompt(prompt)
    require_recordable(device, cuda_graphs=cuda_graphs, offload=offload, sharing=sharing)
    chosen = {"video.decoder": decoder, "backbone.quantize": quantize}
    settings = [*(f"{name}={value}" for name, value in chosen.items() if value is not None), *(settings or ())]
    shots = [_OPTIONS.get(name, name) for name in given(context, *_OF_SHOTS)]
    if resume is not None:
        for name in given(context, "prompts", "out", "force", "size", "engine"):
            raise UsageError(f"`--{name}` cannot be combined with `--resume`", hint="a run keeps its folder and size")
        for name in shots:
            raise UsageError(
                f"`--{name}` cannot be combined with `--resume`",
                hint="a run keeps its shots; `llrag extend --prompt` adds one",
            )
        from llrag_cli.cli.extend import continue_run

        repeated: dict[str, Any] = {name: context.params[name] for name in given(context, "seed", "dtype")}
        if text is not None:
            repeated["prompt"] = text
        if image is not None:
            repeated["image"] = image.absolute()
        continue_run(
            resume,
            seconds=seconds if given(context, "seconds") else None,
            repeated=repeated,
            backbone=backbone,
            rag=rag,
            memory=memory,
            encoder=encoder,
            settings=settings,
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
        return

    # everything that can be checked early, before torch is imported
    from llrag_cli.batch.executors import parse_engine
    from llrag_cli.cli import console
    from llrag_cli.files.image import open_image
    from llrag_cli.files.prompts import read_prompt_file
    from llrag_cli.formatting import parse_bytes
    from llrag_cli.models.default import default_backbone
    from llrag_cli.models.family import family_of
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.record import require_length

    for name in shots if prompts else ():
        raise UsageError(f"`--{name}` and `--prompts` cannot be combined", hint="generate the scenes one by one")
    if (text is None) == (prompts is None) and scene is None:
        raise UsageError(
            "a prompt is missing" if text is None else "a prompt and `--prompts` cannot be combined",
            hint='for example `llrag generate "a red circle bounces around on a striped blue wall"`',
        )
    asked = requested_scene(
        scene,
        text=text,
        seconds=seconds,
        seconds_given=bool(given(context, "seconds")),
        then=then or (),
        image=image,
        video=video,
        references=references or (),
        pins=pins or (),
    )
    if asked is not None:
        seed = seed if asked.seed is None or given(context, "seed") else asked.seed
        takes = takes or asked.takes
    takes = takes or 1
    texts = [text] if text is not None else read_prompt_file(prompts) if prompts is not None else []
    require_length(seconds)

    preset, strategy, changes = scene_configuration(asked, backbone, None if rag is False else memory, settings)

    def configured(default: str) -> RunConfig:
        return configuration(
            preset,
            default=default,
            rag=rag,
            memory=memory if rag is False else strategy,
            encoder=encoder,
            archive=archive,
            size=size,
            settings=changes,
        )

    config = configured("tiny")
    if image is not None:
        config.require_framewise()
        open_image(image)
    timeline = None if asked is None else planned(asked, config, file=scene)
    limit = None if memory_budget is None else parse_bytes(memory_budget)
    where = parse_engine(engine)
    if where is not None:
        _require_jobs(engine, many=prompts is not None and out is not None, limited=limit is not None)
    RunFolder(out or Path("runs")).require_writable()
    title = texts[0] if texts else "" if asked is None else asked.title or asked.shots[0].prompt
    folders = _folders_of_takes(out, title, takes, force=force) if prompts is None else _folders_of_prompts(out, texts)
    with console.working("loading"):
        if preset is None and (default := default_backbone()) != "tiny":
            config = configured(default)
            timeline = None if asked is None else planned(asked, config, file=scene)
        known = texts if timeline is None else timeline.prompts
        family_of(config).require_settings(config)
        require_understood(config, known)

        from llrag_cli.engine.execution import Execution

        how = Execution(
            offload=offload,
            sharing=sharing,
            attention=attention,
            compile=compile_,
            cuda_graphs=cuda_graphs,
            fast=fast,
        )
    if where is not None:
        from llrag_cli.cli.generate_jobs import run_jobs

        run_jobs(
            where, config, texts, folders, seconds, seed, image, device=device, dtype=dtype, how=how, force=force,
            title=f"{config.label}, {engine}", as_json=as_json,
        )  # fmt: skip
        return

    if out is not None and not force and (takes > 1 or prompts is not None):
        _require_same_runs(folders, config, timeline, texts, seconds=seconds, image=image, seed=seed)
    with console.working("loading"):
        from llrag_cli.engine.pipeline import Pipeline

        budget, batch = _fitting(
            config,
            timeline,
            seconds=seconds,
            takes=takes,
            prompts=known,
            device=device,
            dtype=dtype,
            offload=offload,
            sharing=sharing,
            cuda_graphs=cuda_graphs,
            limit=limit,
            scratch=out or Path("runs"),
        )
        console.note(budget.sentence())
        budget.require()
        _warn_if_not_exact(config, budget.config)
        config = budget.config
        how = replace(how, batch=batch)
        pipeline = Pipeline.load(config, device=device, dtype=dtype, how=how, prompts=known)
    note_fast(pipeline.backbone.device.type, fast=fast)
    show_readings(config, known, only_incomplete=len(known) > MANY_PROMPTS)
    work: list[str | Scene] = [*texts] if asked is None else [asked]
    plain: dict[str, Any] = (
        {"seconds": seconds, "image": image} if asked is None else {}
    )  # a scene has lengths and pictures of its own
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block if timeline is None else timeline.blocks
    if takes > 1:
        from llrag_cli.cli.takes import generate_takes, show_takes

        root = folders[0].path.parent
        runs = generate_takes(
            pipeline,
            work[0],
            folders,
            seeds=range(seed, seed + takes),
            batch=batch,
            existing="replace" if force else "resume" if out is not None else "refuse",
            blocks=blocks,
            resume_with=_same_command(out, root, force=force),
            **plain,
        )
        show_takes(root, runs, title=title, as_json=as_json)
        return
    from llrag_cli.batch.sharing import shared
    from llrag_cli.runs.maker import make_video

    existing: Existing = "replace" if force else "resume" if prompts is not None and out is not None else "refuse"
    resume_with = None if prompts is None else _continuing_all(out, texts, folders, force=force)

    def make(number: int) -> RunRecord:
        folder = folders[number]
        if existing == "resume":
            folder.require_unlocked()  # before its progress is shown
        heading = config.label + (f" {number + 1}/{len(work)}" if len(work) > 1 else "")
        with console.generation(
            heading, blocks=blocks, frame_rate=config.backbone.fps, folder=folder.path, resume_with=resume_with
        ) as update:
            return make_video(pipeline, work[number], folder, seed=seed, existing=existing, on_progress=update, **plain)

    numbers = range(len(work))
    together = shared(numbers, make, on_wait=console.waiting_for)
    made = together if existing == "resume" else ((number, make(number)) for number in numbers)
    records: dict[int, RunRecord] = {}
    for number, records[number] in made:
        if not as_json:
            console.result(str(folders[number].video))
    if as_json:
        results = [
            {"folder": str(folder.path), "video": str(folder.video), **records[number].model_dump(mode="json")}
            for number, folder in enumerate(folders)
        ]
        console.result_json(results[0] if prompts is None else results)


# --- before torch is imported --------------------------------------------------------------------------


def _require_jobs(engine: str, *, many: bool, limited: bool) -> None:
    """Refuse what an engine of workers cannot do."""
    if not many:
        raise UsageError(
            f"the engine `{engine}` generates many videos", hint="give them with `--prompts FILE --out FOLDER`"
        )
    if limited:
        raise UsageError(
            "`--memory-budget` is planned on this machine, but jobs may run on others",
            hint="choose the `--archive` instead; each worker takes the first tier that fits",
        )


def _folders_of_takes(out: Path | None, title: str, takes: int, *, force: bool) -> list[RunFolder]:
    """The run folder of a video, or one of each take."""
    from llrag_cli.files.durable import require_own
    from llrag_cli.runs.folder import RunFolder, unused_folder

    root = out or unused_folder(Path("runs"), slug(title))
    if takes > 1:
        for name in ("takes.png", "takes.html"):
            require_own(root / name)
        if RunFolder(root).record.exists():  # takes lie beside each other, not in a run
            raise RunExistsError(root)
        folders = [RunFolder(root / f"take-{number}") for number in range(1, takes + 1)]
        for folder in folders:
            folder.require_writable()
        return folders
    folder = RunFolder(root)
    if out is not None and not force:
        folder.require_free()
    return [folder]


def _require_same_runs(
    folders: Sequence[RunFolder],
    config: RunConfig,
    timeline: Timeline | None,
    texts: Sequence[str],
    *,
    seconds: float,
    image: Path | None,
    seed: int,
) -> None:
    """Raise an error if a folder has a run that the command would not continue: takes differ in their seeds only."""
    from llrag_cli.scenes.timeline import one_shot

    frames = config.latent_frames(seconds)
    opening = None if image is None else image.absolute()
    takes = timeline is not None or len(texts) == 1 < len(folders)
    for number, folder in enumerate(folders):
        text = "" if timeline is not None else texts[0 if takes else number]
        shots = timeline or one_shot(text, config, latent_frames=frames, image=opening)
        folder.require_same(config, shots, seed=seed + number if takes else seed)


def _folders_of_prompts(out: Path | None, texts: list[str]) -> list[RunFolder]:
    """A run folder for each line of a prompts file; its name does not depend on the lines that follow."""
    from llrag_cli.runs.folder import RunFolder, unused_folder

    names = [f"{number:03d}-{slug(text)}" for number, text in enumerate(texts, 1)]
    return [RunFolder(out / name if out else unused_folder(Path("runs"), name)) for name in names]


def _same_command(out: Path | None, root: Path, *, force: bool) -> str:
    """How the command that made the folders in ``root`` is repeated to continue them."""
    if out is None:
        return f"the same command with `--out {quote(str(root))}`"
    return "the same command without `--force`" if force else "the same command"


def _continuing_all(out: Path | None, texts: list[str], folders: list[RunFolder], *, force: bool) -> str | None:
    """The command that continues the videos of a prompts file; None where it would choose other folders."""
    root = folders[0].path.parent
    named = [folder.path for folder in _folders_of_prompts(root, texts)]
    return _same_command(out, root, force=force) if named == [folder.path for folder in folders] else None


# --- after ---------------------------------------------------------------------------------------------


def _fitting(
    config: RunConfig, timeline: Timeline | None, *, seconds: float, takes: int, **options: Any
) -> tuple[Budget, int]:
    """The memory plan, and how many takes fit into one batch."""
    from llrag_cli.engine.pipeline import memory_plan

    extent: dict[str, Any] = {"seconds": seconds}
    if timeline is not None:
        extent = {
            "seconds": timeline.seconds,
            "references": timeline.reference_count,
            "pinned": timeline.pinned_frames,
            "switches": timeline.switches,
        }
    batch = takes
    while True:
        budget = memory_plan(config, batch=batch, **extent, **options)
        if budget.short is None or batch == 1:
            return budget, batch
        batch = (batch + 1) // 2


def _warn_if_not_exact(asked: RunConfig, planned: RunConfig) -> None:
    """Say so if the plan had to choose an archive that changes the video."""
    from llrag_cli.cache.tiers import EXACT
    from llrag_cli.cli import console
    from llrag_cli.memory.strategies import RetrievalMemory
    from llrag_cli.planning import NOT_EXACT

    memory = planned.memory
    if isinstance(memory, RetrievalMemory) and memory != asked.memory and memory.archive not in EXACT:
        console.warn(f"no exact archive fits: {NOT_EXACT[memory.archive]}")


# --- words ---------------------------------------------------------------------------------------------


def one_prompt(words: list[str] | None) -> str | None:
    """The prompt of a command line; several arguments are a prompt without quotes."""
    if not words:
        return None
    if len(words) > 1:
        raise UsageError(
            f"{len(words)} arguments instead of one prompt",
            hint=f'quote the prompt: `llrag generate "{" ".join(words)}"`',
        )
    if not words[0].strip():
        raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows")
    return words[0]


def slug(text: str) -> str:
    """A short file name of a prompt's first words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:48].strip("-") or "video"
