"""``llrag generate --resume`` and ``llrag extend``: continue a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llrag_cli.cli import console
from llrag_cli.config import EXACT
from llrag_cli.errors import RunDiffersError, RunLengthError, UsageError
from llrag_cli.presets import archive_settings, with_settings
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.record import RunRecord, ScheduledPrompt, require_length, require_same


@dataclass(frozen=True)
class ResumeRequest:
    """What was asked for on the command line."""

    run: Path
    seconds: float | None = None  # length in all
    further: float | None = None  # seconds more than the run has
    prompt: str | None = None  # of what is further
    said: Mapping[str, Any] = field(default_factory=dict)  # settings repeated on the command line; must be the run's
    archive: str | None = None
    memory_budget: str | None = None
    device: str = "auto"
    offload: bool = False
    attention: str | None = None
    compile: bool = False
    as_json: bool = False


def run(request: ResumeRequest) -> None:
    """Make what is missing of a run, or more than it was to have."""
    if request.prompt is not None and not request.prompt.strip():
        raise UsageError("the prompt is empty", hint="say in a sentence what the video shows, or leave it out")
    for seconds in (request.seconds, request.further):
        if seconds is not None:
            require_length(seconds)
    folder = RunFolder(request.run)
    record = folder.read_record()
    config = record.config
    _require_as_said(request, record)
    seconds = request.seconds or record.seconds + (request.further or 0.0)
    if seconds < record.seconds:
        raise RunLengthError(folder.path, recorded=record.seconds, requested=seconds)
    if folder.is_finished(record, seconds=seconds):
        console.note(f"`{folder.path}` is already complete")
        _show(request, folder, record)
        return
    folder.require_writable()
    with console.working("loading"):
        from llrag_cli.engine.execution import Execution
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.planning import parse_bytes
        from llrag_cli.runs.maker import resume_video

        tier = request.archive
        if tier is None and config.memory.archive in EXACT:
            tier = "auto"  # the exact tiers give the same video, so one that fits is chosen again
        if config.method == "retrieval" and tier is not None:
            config = with_settings(config, archive_settings(config.method, archive=tier))
        budget = memory_plan(
            config,
            device=request.device,
            dtype=record.dtype,
            seconds=seconds,
            offload=request.offload,
            limit=None if request.memory_budget is None else parse_bytes(request.memory_budget),
            scratch=folder.path,
        )
        console.note(budget.sentence())
        budget.require()
        config = budget.config
        pipeline = Pipeline.load(
            config,
            device=request.device,
            dtype=record.dtype,
            how=Execution(offload=request.offload, attention=request.attention, compile=request.compile),
            prompts=[
                *(entry.prompt for entry in record.prompt_schedule),
                *([request.prompt] if request.prompt else []),
            ],
        )
    for word in pipeline.text.unknown_words(request.prompt or ""):
        console.warn(f"`{word}` is outside the vocabulary of the embedded model and is left out")
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
    title = f"{config.name} {config.method}"
    with console.generation(title, blocks=blocks, frame_rate=config.backbone.fps, folder=folder.path) as update:
        record = resume_video(pipeline, folder, seconds=seconds, prompt=request.prompt, on_progress=update)
    _show(request, folder, record)


def _show(request: ResumeRequest, folder: RunFolder, record: RunRecord) -> None:
    if request.as_json:
        console.result_json({"folder": str(folder.path), "video": str(folder.video), **record.model_dump(mode="json")})
    else:
        console.result(str(folder.video))


def _require_as_said(request: ResumeRequest, record: RunRecord) -> None:
    """Raise an error if a setting was given on the command line that the run does not have."""
    said, config = dict(request.said), record.config
    own = {"backbone": config.name, "method": config.method}
    names = [name for name, value in own.items() if said.pop(name, value) != value]
    if names:
        raise RunDiffersError(request.run, names)
    changes = {"config": with_settings(config, said.pop("settings", ())), **said}
    if "prompt" in changes:
        changes["prompt_schedule"] = (ScheduledPrompt(block=0, prompt=changes.pop("prompt")),)
    require_same(record, record.model_copy(update=changes), request.run)
