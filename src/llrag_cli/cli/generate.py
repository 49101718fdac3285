"""``llrag generate``: parse the request, run it, show it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llrag_cli.batch.executors import Engine, parse_engine
from llrag_cli.cli import console
from llrag_cli.cli.gather import gather, require_all
from llrag_cli.config import EXACT, RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.prompts import read_prompt_file
from llrag_cli.presets import Method, archive_settings, asked_for, load_config, memory_settings
from llrag_cli.runs.folder import RunFolder, unused_folder
from llrag_cli.runs.record import require_length

if TYPE_CHECKING:
    from llrag_cli.runs.maker import Existing


@dataclass(frozen=True)
class GenerateRequest:
    """What was asked for on the command line."""

    prompt: str | None
    prompts: Path | None
    backbone: str | None
    preset: Path | None
    method: Method
    memory: str | None
    encoder: Path | None
    archive: str | None
    memory_budget: str | None
    settings: tuple[str, ...]
    seconds: float
    seed: int
    image: Path | None
    out: Path | None
    device: str
    dtype: str
    offload: bool
    attention: str | None
    compile: bool
    force: bool
    as_json: bool
    resume: Path | None = None
    engine: str = "local"
    said: frozenset[str] = frozenset()  # names of the options that were given, not left at their defaults


def run(request: GenerateRequest) -> None:
    """Make the videos of a request."""
    if request.resume is not None:
        _resume(request, request.resume)
        return
    prompts = read_prompts(request)
    require_length(request.seconds)
    _config(request, default="tiny")  # a typo is reported here, before torch loads
    engine = parse_engine(request.engine)
    existing: Existing = "replace" if request.force else "resume" if request.prompts and request.out else "refuse"
    out = RunFolder(request.out or Path("runs"))
    out.require_writable()
    if request.out is not None and existing == "refuse":
        out.require_free()
    if engine is not None:
        _generate_elsewhere(request, prompts, engine)
        return
    with console.working("loading"):
        from llrag_cli.engine.devices import default_backbone
        from llrag_cli.engine.execution import Execution
        from llrag_cli.engine.pipeline import Pipeline, memory_plan, require_framewise
        from llrag_cli.files.image import open_image
        from llrag_cli.planning import NOT_EXACT, parse_bytes
        from llrag_cli.runs.maker import make_video

        config = _config(request, default=default_backbone())
        if request.image is not None:
            require_framewise(config)
            open_image(request.image)  # a bad picture is reported here, before weights are read
        budget = memory_plan(
            config,
            device=request.device,
            dtype=request.dtype,
            seconds=request.seconds,
            offload=request.offload,
            limit=None if request.memory_budget is None else parse_bytes(request.memory_budget),
            scratch=request.out or Path("runs"),
        )
        console.note(budget.sentence())
        budget.require()
        if config.memory.archive == "auto" and budget.config.memory.archive not in EXACT:
            console.warn(f"nothing else fits: {NOT_EXACT[budget.config.memory.archive]}")
        config = budget.config
        pipeline = Pipeline.load(
            config,
            device=request.device,
            dtype=request.dtype,
            how=Execution(offload=request.offload, attention=request.attention, compile=request.compile),
            prompts=prompts,
        )
    records = []
    for number, prompt in enumerate(prompts, start=1):
        for word in pipeline.text.unknown_words(prompt):
            console.warn(f"`{word}` is outside the vocabulary of the embedded model and is left out")
        folder = RunFolder(_folder(request, prompt, number, len(prompts)))
        blocks = config.latent_frames(request.seconds) // config.backbone.frames_per_block
        title = f"{config.name} {config.method}" + (f" {number}/{len(prompts)}" if len(prompts) > 1 else "")
        with console.generation(title, blocks=blocks, frame_rate=config.backbone.fps, folder=folder.path) as update:
            record = make_video(
                pipeline,
                prompt,
                folder,
                seconds=request.seconds,
                seed=request.seed,
                existing=existing,
                image=request.image,
                on_progress=update,
            )
        records.append({"folder": str(folder.path), "video": str(folder.video), **record.model_dump(mode="json")})
        if not request.as_json:
            console.result(str(folder.video))
    if request.as_json:
        console.result_json(records if request.prompts else records[0])


def _generate_elsewhere(request: GenerateRequest, prompts: list[str], engine: Engine) -> None:
    """Make the videos of a request as jobs of an engine."""
    if request.prompts is None or request.out is None:
        raise UsageError(
            f"the engine `{request.engine}` makes many videos at once",
            hint="give them with `--prompts FILE --out FOLDER`",
        )
    if request.memory_budget is not None:
        raise UsageError(
            "`--memory-budget` plans for this machine, and workers may run on others",
            hint="name the `--archive` instead; each worker takes the first that fits it",
        )
    with console.working("loading"):
        from llrag_cli.batch.jobs import PipelineSpec, VideoJob, generate_video
        from llrag_cli.engine.pipeline import Execution, default_backbone

        config = _config(request, default=default_backbone())
        how = Execution(offload=request.offload, attention=request.attention, compile=request.compile)
        spec = PipelineSpec(config, request.device, request.dtype, how, tuple(prompts))
        folders = [
            RunFolder(_folder(request, prompt, number, len(prompts)).resolve())
            for number, prompt in enumerate(prompts, start=1)
        ]
        if request.force:
            for folder in folders:
                with folder.lock():
                    folder.clear()
    image = None if request.image is None else request.image.resolve()
    jobs = [
        VideoJob(spec, prompt, folder.path, request.seconds, request.seed, image)
        for prompt, folder in zip(prompts, folders, strict=True)
    ]
    blocks = config.latent_frames(request.seconds) // config.backbone.frames_per_block
    outcomes = gather(
        engine,
        generate_video,
        jobs,
        title=f"{config.name} {config.method}, {request.engine}",
        total=len(jobs) * blocks,
        made=lambda _: sum(min(blocks, folder.blocks_committed()) for folder in folders),
    )
    made = [(folders[each.number], each.result) for each in outcomes if each.result is not None]
    if request.as_json:
        console.result_json(
            [
                {"folder": str(one.path), "video": str(one.video), **record.model_dump(mode="json")}
                for one, record in made
            ]
        )
    else:
        for folder, _ in made:
            console.result(str(folder.video))
    require_all(outcomes, [folder.path.name for folder in folders])


def _resume(request: GenerateRequest, folder: Path) -> None:
    """Go on with a run; what else was said must be what it was begun with."""
    from llrag_cli.cli.resume import ResumeRequest
    from llrag_cli.cli.resume import run as resume

    for name in ("prompts", "out", "force"):
        if name in request.said:
            raise UsageError(
                f"`--{name}` does not go with `--resume`", hint="a run goes on in its folder, with what it has"
            )
    said: dict[str, Any] = {
        name: getattr(request, name) for name in ("prompt", "seed", "dtype") if name in request.said
    }
    if request.image is not None:
        said["image"] = str(request.image)
    if source := asked_for(backbone=request.backbone, preset=request.preset):
        said["backbone"] = Path(source).stem
    if "rag" in request.said:
        said["method"] = request.method
    memory = memory_settings(request.method, recall=request.memory, encoder=request.encoder)
    resume(
        ResumeRequest(
            run=folder,
            seconds=request.seconds if "seconds" in request.said else None,
            said={**said, "settings": (*memory, *request.settings)},
            archive=request.archive,
            memory_budget=request.memory_budget,
            device=request.device,
            offload=request.offload,
            attention=request.attention,
            compile=request.compile,
            as_json=request.as_json,
        )
    )


def _config(request: GenerateRequest, *, default: str) -> RunConfig:
    source = asked_for(backbone=request.backbone, preset=request.preset) or default
    memory = memory_settings(request.method, recall=request.memory, encoder=request.encoder)
    archive = archive_settings(request.method, archive=request.archive)
    return load_config(source, method=request.method, settings=(*memory, *archive, *request.settings))


def read_prompts(request: GenerateRequest) -> list[str]:
    """The prompts of a request: the argument, or the lines of a file."""
    if (request.prompt is None) == (request.prompts is None):
        raise UsageError(
            "there is no prompt" if request.prompt is None else "a prompt and `--prompts` were both given",
            hint='for example `llrag generate "a red circle bounces around on a striped blue wall"`',
        )
    if request.prompt is not None:
        if not request.prompt.strip():
            raise UsageError("the prompt is empty", hint="say in a sentence what the video shows")
        return [request.prompt]
    assert request.prompts is not None
    return read_prompt_file(request.prompts)


def _folder(request: GenerateRequest, prompt: str, number: int, count: int) -> Path:
    name = slug(prompt)
    if request.prompts is not None:
        parent = request.out or Path("runs")
        numbered = f"{number:0{max(3, len(str(count)))}d}-{name}"
        return parent / numbered if request.out else unused_folder(parent, numbered)
    return request.out or unused_folder(Path("runs"), name)


def slug(text: str) -> str:
    """A short file name of a prompt's first words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return "-".join(words)[:48].strip("-") or "video"
