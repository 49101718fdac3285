"""``llrag generate``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import (
    MANY,
    Archive,
    Attention,
    BackboneName,
    Compile,
    Device,
    Dtype,
    Encoder,
    EngineName,
    Json,
    Memory,
    MemoryBudget,
    Offload,
    Rag,
    Seconds,
    Set,
    Size,
    configuration,
    given,
)
from llrag_cli.cli.scenes import (
    Footage,
    Pins,
    References,
    SceneFile,
    Takes,
    Then,
    requested_scene,
    scene_configuration,
)
from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llrag_cli.batch.executors import Engine
    from llrag_cli.config import RunConfig
    from llrag_cli.engine.execution import Execution
    from llrag_cli.engine.pipeline import Pipeline
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.maker import Existing
    from llrag_cli.runs.record import RunRecord
    from llrag_cli.scenes.schema import Scene


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
    attention: Attention = None,
    compile_: Compile = False,
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
    if resume is not None:
        from llrag_cli.cli.extend import continue_run

        for name in given(context, "prompts", "out", "force", "size", "engine"):
            raise UsageError(f"`--{name}` cannot be combined with `--resume`", hint="a run keeps its folder and size")
        for name in given(context, "scene", "then", "video", "references", "pins", "takes"):
            option = {"references": "reference", "pins": "pin"}.get(name, name)
            raise UsageError(
                f"`--{option}` cannot be combined with `--resume`",
                hint="a run keeps its shots; `llrag extend --prompt` adds one",
            )
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
            settings=settings or (),
            archive=archive,
            memory_budget=memory_budget,
            device=device,
            offload=offload,
            attention=attention,
            compile_=compile_,
            as_json=as_json,
        )
        return

    # everything that can be checked early, before torch is imported
    from llrag_cli.batch.executors import parse_engine
    from llrag_cli.cli import console
    from llrag_cli.files.image import open_image
    from llrag_cli.files.prompts import read_prompt_file
    from llrag_cli.formatting import parse_bytes
    from llrag_cli.runs.folder import RunFolder, unused_folder
    from llrag_cli.runs.record import require_length
    from llrag_cli.scenes.timeline import plan_timeline

    for option in given(context, "scene", "then", "video", "references", "pins", "takes") if prompts else ():
        option = {"references": "reference", "pins": "pin"}.get(option, option)
        raise UsageError(f"`--{option}` and `--prompts` cannot be combined", hint="generate the scenes one by one")
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
    if asked is not None and asked.seed is not None and not given(context, "seed"):
        seed = asked.seed
    if takes is None:
        takes = 1 if asked is None else asked.takes
    texts = [text] if text is not None else read_prompt_file(prompts) if prompts is not None else []
    require_length(seconds)

    preset, strategy, changes = scene_configuration(asked, backbone, None if rag is False else memory, settings or ())
    if rag is False:
        strategy = memory

    def configured(default: str) -> RunConfig:
        return configuration(
            preset,
            default=default,
            rag=rag,
            memory=strategy,
            encoder=encoder,
            archive=archive,
            size=size,
            settings=changes,
        )

    config = configured("tiny")
    if image is not None:
        config.require_framewise()
        open_image(image)
    timeline = None if asked is None else plan_timeline(asked, config)
    if timeline is not None and all(len(shot.blocks) == shot.given_blocks for shot in timeline.shots):
        raise UsageError(
            f"the clip fills all of the {timeline.seconds:.1f} s, so there is nothing to generate",
            hint="its length counts in the length of the video: "
            + ("give more `--seconds`" if scene is None else f"give the shot more `seconds` in `{scene}`"),
        )
    limit = None if memory_budget is None else parse_bytes(memory_budget)
    where = parse_engine(engine)
    if where is not None:
        if prompts is None or out is None:
            raise UsageError(
                f"the engine `{engine}` generates many videos", hint="give them with `--prompts FILE --out FOLDER`"
            )
        if limit is not None:
            raise UsageError(
                "`--memory-budget` is planned on this machine, but jobs may run on others",
                hint="choose the `--archive` instead; each worker takes the first tier that fits",
            )
    parent = RunFolder(out or Path("runs"))
    parent.require_writable()
    if prompts is None:
        first = texts[0] if texts else (asked.title or asked.shots[0].prompt) if asked is not None else ""
        folders = [RunFolder(out or unused_folder(Path("runs"), slug(first)))]
        if takes > 1:
            root = folders[0].path
            folders = [RunFolder(root / f"take-{number}") for number in range(1, takes + 1)]
        elif out is not None and not force:
            folders[0].require_free()
    else:
        names = [f"{number:0{max(3, len(str(len(texts))))}d}-{slug(text)}" for number, text in enumerate(texts, 1)]
        folders = [RunFolder(parent.path / name if out else unused_folder(parent.path, name)) for name in names]
    with console.working("loading"):
        from llrag_cli.engine.devices import default_backbone
        from llrag_cli.engine.execution import Execution

        if preset is None and (default := default_backbone()) != "tiny":
            config = configured(default)
            timeline = None if asked is None else plan_timeline(asked, config)
        how = Execution(offload=offload, attention=attention, compile=compile_)
    if where is not None:
        _run_jobs(
            where, config, texts, folders, seconds, seed, image, device=device, dtype=dtype, how=how, force=force,
            title=f"{config.label}, {engine}", as_json=as_json,
        )  # fmt: skip
        return

    with console.working("loading"):
        from llrag_cli.cache.tiers import EXACT
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.memory.strategies import RetrievalMemory
        from llrag_cli.planning import NOT_EXACT
        from llrag_cli.runs.maker import make_video

        extent: dict[str, Any] = {"seconds": seconds}
        if timeline is not None:
            extent = {
                "seconds": timeline.seconds,
                "references": timeline.reference_count,
                "pinned": timeline.pinned_frames,
            }
        batch, budget = takes, None
        while budget is None or (budget.short is not None and batch > 1):  # takes in one batch, where memory allows
            batch = batch if budget is None else (batch + 1) // 2
            budget = memory_plan(
                config,
                device=device,
                dtype=dtype,
                offload=offload,
                limit=limit,
                scratch=parent.path,
                batch=batch,
                **extent,
            )
        console.note(budget.sentence())
        budget.require()
        chosen = budget.config.memory
        if isinstance(chosen, RetrievalMemory) and chosen != config.memory and chosen.archive not in EXACT:
            console.warn(f"no exact archive fits: {NOT_EXACT[chosen.archive]}")
        config = budget.config
        known = texts if timeline is None else timeline.prompts
        pipeline = Pipeline.load(config, device=device, dtype=dtype, how=how, prompts=known)
    existing: Existing = "replace" if force else "resume" if prompts is not None and out is not None else "refuse"
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
    if timeline is not None:
        blocks = timeline.blocks
        console.warn_of_unknown_words(
            list(dict.fromkeys(word for shot in timeline.shots for word in pipeline.text.unknown_words(shot.prompt)))
        )
    if takes > 1:
        runs = _make_takes(
            pipeline,
            asked or texts[0],
            folders,
            seeds=range(seed, seed + takes),
            batch=batch,
            seconds=seconds if asked is None else None,
            image=image if asked is None else None,
            existing="replace" if force else "resume" if out is not None else "refuse",
            blocks=blocks,
        )
        _show_takes(folders[0].path.parent, runs, title=first, as_json=as_json)
        return
    results = []
    works: list[str | Scene] = [*texts] if asked is None else [asked]
    for number, (work, folder) in enumerate(zip(works, folders, strict=True), start=1):
        if isinstance(work, str):
            console.warn_of_unknown_words(pipeline.text.unknown_words(work))
        title = config.label + (f" {number}/{len(works)}" if len(works) > 1 else "")
        with console.generation(title, blocks=blocks, frame_rate=config.backbone.fps, folder=folder.path) as update:
            record = make_video(
                pipeline,
                work,
                folder,
                seconds=seconds if isinstance(work, str) else None,
                seed=seed,
                existing=existing,
                image=image if isinstance(work, str) else None,
                on_progress=update,
            )
        results.append({"folder": str(folder.path), "video": str(folder.video), **record.model_dump(mode="json")})
        if not as_json:
            console.result(str(folder.video))
    if as_json:
        console.result_json(results[0] if prompts is None else results)


def _make_takes(
    pipeline: Pipeline,
    what: str | Scene,
    folders: Sequence[RunFolder],
    *,
    seeds: Sequence[int],
    batch: int,
    seconds: float | None,
    image: Path | None,
    existing: Existing,
    blocks: int,
) -> list[tuple[RunFolder, RunRecord]]:
    """Generate takes, so many together as fit into memory."""
    from llrag_cli.cli import console
    from llrag_cli.runs.maker import make_takes

    runs: list[tuple[RunFolder, RunRecord]] = []
    for first in range(0, len(folders), batch):
        together = folders[first : first + batch]
        numbers = f"{first + 1}-{first + len(together)}" if len(together) > 1 else f"{first + 1}"
        with console.generation(
            f"{pipeline.config.label}, take {numbers} of {len(folders)}",
            blocks=blocks,
            frame_rate=pipeline.config.backbone.fps,
            folder=together[0].path,
        ) as update:
            records = make_takes(
                pipeline,
                what,
                together,
                seeds=seeds[first : first + batch],
                seconds=seconds,
                existing=existing,
                image=image,
                on_progress=update,
            )
        runs += zip(together, records, strict=True)
    return runs


def _show_takes(root: Path, runs: Sequence[tuple[RunFolder, RunRecord]], *, title: str, as_json: bool) -> None:
    """Write the contact sheet and print where everything is."""
    from llrag_cli.cli import console

    with console.working("contact sheet"):
        from llrag_cli.evaluation.takes import offline_features, write_sheet

        features = offline_features()
        sheet = write_sheet(root, runs, title=title, features=features)
    if features is None:
        console.note("takes are not ranked: that needs the extra `metrics` (`pip install 'llrag[metrics]'`)")
    if as_json:
        rows = [
            {
                "folder": str(folder.path),
                "video": str(folder.video),
                "drift": None if sheet.drift is None else sheet.drift[number],
                **record.model_dump(mode="json"),
            }
            for number, (folder, record) in enumerate(runs)
        ]
        console.result_json({"picture": str(sheet.picture), "page": str(sheet.page), "takes": rows})
        return
    order = range(len(runs)) if sheet.drift is None else sorted(range(len(runs)), key=sheet.drift.__getitem__)
    for number in order:
        drift = "" if sheet.drift is None else f"  drift {sheet.drift[number]:.4f}"
        console.result(f"{runs[number][0].video}{drift}")
    console.result(str(sheet.picture))
    console.result(str(sheet.page))


def _run_jobs(
    engine: Engine,
    config: RunConfig,
    texts: list[str],
    folders: list[Any],
    seconds: float,
    seed: int,
    image: Path | None,
    *,
    device: str,
    dtype: str,
    how: Execution,
    force: bool,
    title: str,
    as_json: bool,
) -> None:
    """Generate videos as jobs of an engine."""
    from llrag_cli.batch.jobs import PipelineSpec, VideoJob, generate_video
    from llrag_cli.cli import console
    from llrag_cli.cli.gather import gather, require_all

    if force:
        for folder in folders:
            with folder.lock():
                folder.clear()
    spec = PipelineSpec(config, device, dtype, how, tuple(texts))
    picture = None if image is None else image.resolve()
    jobs = [
        VideoJob(spec, text, folder.path.resolve(), seconds, seed, picture)
        for text, folder in zip(texts, folders, strict=True)
    ]
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
    outcomes = gather(
        engine,
        generate_video,
        jobs,
        title=title,
        total=len(jobs) * blocks,
        completed=lambda _: sum(min(blocks, folder.blocks_committed()) for folder in folders),
    )
    finished = [(folders[outcome.number], outcome.result) for outcome in outcomes if outcome.result is not None]
    if as_json:
        console.result_json(
            [
                {"folder": str(folder.path), "video": str(folder.video), **record.model_dump(mode="json")}
                for folder, record in finished
            ]
        )
    else:
        for folder, _ in finished:
            console.result(str(folder.video))
    require_all(outcomes, [folder.path.name for folder in folders])


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
