"""``llrag generate --resume`` and ``llrag extend``: go on with a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llrag_cli.cli import console
from llrag_cli.config import EXACT, RunConfig
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.presets import archive_settings, with_settings


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
        if seconds is not None and not 0 < seconds < float("inf"):
            raise UsageError(f"a video of {seconds:g} seconds cannot be made", hint="`--seconds` must be more than 0")
    with console.working("loading"):
        from llrag_cli.engine.execution import Execution
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.planning import parse_bytes
        from llrag_cli.runs.folder import RunFolder
        from llrag_cli.runs.maker import resume_video

        folder = RunFolder(request.run)
        record = folder.read_record()
        config = recorded_config(folder.record, record)
        _require_as_said(request, record, config)
        seconds = request.seconds or record["seconds"] + (request.further or 0.0)
        tier = request.archive
        if tier is None and config.memory.archive in EXACT:
            tier = "auto"  # where the same numbers are kept may be chosen anew
        if config.method == "retrieval" and tier is not None:
            config = with_settings(config, archive_settings(config.method, archive=tier))
        budget = memory_plan(
            config,
            device=request.device,
            dtype=record["dtype"],
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
            dtype=record["dtype"],
            how=Execution(offload=request.offload, attention=request.attention, compile=request.compile),
            prompts=[*(said for _, said in record["script"]), *([request.prompt] if request.prompt else [])],
        )
    for word in pipeline.text.unknown_words(request.prompt or ""):
        console.warn(f"`{word}` is outside the vocabulary of the embedded model and is left out")
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
    title = f"{config.name} {config.method}"
    with console.generation(title, blocks=blocks, frame_rate=config.backbone.fps, folder=folder.path) as update:
        record = resume_video(pipeline, folder, seconds=seconds, prompt=request.prompt, on_progress=update)
    if request.as_json:
        console.result_json({"folder": str(folder.path), "video": str(folder.video), **record})
    else:
        console.result(str(folder.video))


def recorded_config(file: Path, record: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run; raises ``LlragError`` for a record that cannot be gone on with."""
    try:
        script = [(int(start), str(prompt)) for start, prompt in record["script"]]
        if not script or script[0][0] != 0 or not record["seconds"] > 0 or len(record["latent_shape"]) != 3:
            raise ValueError
        config = RunConfig.model_validate(record["config"])
        for name in ("seed", "image", "dtype", "status", "prompt"):
            record[name]
    except (KeyError, TypeError, ValueError, ValidationError):
        raise LlragError(
            f"`{file}` does not say what it takes to go on",
            hint="it was made by an older llrag, or changed; make the video anew with `--force`",
        ) from None
    return config


def _require_as_said(request: ResumeRequest, record: Mapping[str, Any], config: RunConfig) -> None:
    """Raise an error if a setting was given on the command line that the run does not have."""
    from llrag_cli.runs.maker import require_same

    said = dict(request.said)
    wrong = [f"`{name}`" for name in ("backbone", "method") if said.pop(name, _own(config, name)) != _own(config, name)]
    if wrong:
        raise UsageError(
            f"`{request.run}` was begun with other settings: {', '.join(wrong)}",
            hint="leave them out: a run goes on with the settings it has",
        )
    wanted = with_settings(config, said.pop("settings", ()))
    require_same(record, {**record, **said, "config": wanted.model_dump(mode="json")}, request.run)


def _own(config: RunConfig, name: str) -> str:
    return config.name if name == "backbone" else config.method
