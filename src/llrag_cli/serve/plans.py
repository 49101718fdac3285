"""From what a client asks for to jobs that can be generated: everything is checked here, without torch."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError, UsageError, closest
from llrag_cli.files.guarded import UnreadableError, require_text, shortened
from llrag_cli.files.paths import weights_folder
from llrag_cli.files.records import first_problem
from llrag_cli.files.settings import require_kinds
from llrag_cli.memory.own import strategies_without_code
from llrag_cli.models.family import family_of, require_files
from llrag_cli.presets import load_config, size_settings, with_settings
from llrag_cli.runs.record import require_length
from llrag_cli.scenes.comparison import native_scene, require_retrieval
from llrag_cli.scenes.reading import scene_from_text
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import Timeline, one_shot, plan_timeline
from llrag_cli.serve.jobs import Job, new_id
from llrag_cli.serve.problems import ApiError, refused
from llrag_cli.serve.settings import ServeSettings

SECONDS = 4.0  # of a video whose length is not given, as in the OpenAI API
SAFE = re.compile(r"memory\.(?!encoder$|strategy$|rule$)\w+|sampler\.\w+|video\.(crf|upscale)")  # settings of scenes
Model = TypeVar("Model", bound=BaseModel)
Resolve = Callable[[str], Path]


class Fields(BaseModel):
    """Fields of a request for a video; numbers may be text, as forms have them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str | None = Field(default=None, description="what the video shows, in a sentence")
    scene: str | None = Field(default=None, description="a scene of several shots in YAML, instead of a prompt")
    model: str | None = Field(default=None, description="name of a model, as `/v1/models` lists them")
    seconds: float | None = Field(default=None, description="length, rounded up to a whole block; 4 by default")
    size: str | None = Field(default=None, description="width and height in pixels, as 832x480")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="seed of the noise; by default a random one")
    memory: str | None = Field(
        default=None, description="`retrieval` (the model's own rule), `native` (none), or a memory strategy"
    )
    takes: int = Field(default=1, ge=1, description="so many videos, under consecutive seeds")
    compare: bool = Field(default=False, description="two videos of one seed: without memory, and with it")
    decoder: Literal["full", "tiny"] | None = Field(default=None, description="`tiny` for previews of Wan models")
    references: tuple[str, ...] = Field(
        default=(), max_length=32, description="ids of characters and videos to retrieve from"
    )

    @field_validator("references", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A form has text: identifiers with commas between them."""
        return tuple(each.strip() for each in value.split(",")) if isinstance(value, str) else value


class ExtendFields(Fields):
    """Fields of a request to extend a video: one of this server, by its identifier, or a file."""

    video: str | None = Field(default=None, description="identifier of a video; or the field is a file")
    video_id: str | None = Field(default=None, description="the same, for clients whose `video` is a file")
    cut: bool = Field(default=False, description="begin a new picture under the prompt, instead of going on")

    def require_plain(self) -> None:
        """Raise ``ApiError`` for what cannot change when a video of this server is extended."""
        for name in sorted(self.model_fields_set - {"prompt", "seconds", "cut", "video", "video_id"}):
            raise ApiError(
                400, f"`{name}` cannot change when a video is extended", code="invalid_value", param=name,
                hint="it keeps its settings",
            )  # fmt: skip


class RemixFields(BaseModel):
    """Fields of a request for a remix."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="what the new video shows")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="by default that of the video")


class SwitchFields(BaseModel):
    """Fields of a request to change the prompt while a video is generated."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="what the video shows from its next block on")
    cut: bool = Field(default=False, description="begin a new picture, instead of going on from the last one")


class CharacterFields(BaseModel):
    """Fields of a request for a character, besides its file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200, description="name of the character")


def parse_fields(model: type[Model], content: Mapping[str, Any]) -> Model:
    """Fields of a request; raises ``ApiError`` that names the first wrong one."""
    given = {name: value for name, value in content.items() if value not in (None, "")}
    try:
        for value in given.values():
            for text in value if isinstance(value, list | tuple) else (value,):
                if isinstance(text, str):
                    require_text(text)
        require_kinds(model, given)
        return model.model_validate(given)
    except UnreadableError as error:
        raise ApiError(400, f"the request is not valid: {error.reason}", code="invalid_value") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0])[:80] if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise ApiError(
                400, f"unknown field `{param}`", code="unknown_parameter", param=param,
                hint=closest(param or "", model.model_fields),
            ) from None  # fmt: skip
        raise ApiError(400, first_problem(error), code="invalid_value", param=param) from None


@dataclass(frozen=True)
class Upload:
    """A file that a client sent, decoded and written again by us."""

    path: Path
    kind: Literal["picture", "clip"]


@dataclass(frozen=True)
class Plan:
    """Jobs that belong together, before they are accepted, and the shots of the first."""

    jobs: tuple[Job, ...]
    timeline: Timeline


def plan(
    fields: Fields,
    settings: ServeSettings,
    resolve: Resolve,
    *,
    upload: Upload | None = None,
    remixed_from: str | None = None,
) -> Plan:
    """The jobs of a request. Raises ``ApiError`` for what cannot be generated.

    ``resolve`` gives the path of an identifier. The paths of an ``upload`` are those of the file as it is now.
    """
    scene = _scene(fields, resolve)
    config = _config(fields, scene, settings)
    seed = fields.seed
    if seed is None:
        seed = scene.seed if scene is not None and scene.seed is not None else secrets.randbelow(2**31)
    scene, image = _with_upload(fields, scene, upload, config, resolve)
    seconds = fields.seconds if fields.seconds is not None else SECONDS
    if scene is None and fields.prompt is not None:
        _require_seconds(seconds, settings)
    common: dict[str, Any] = {"number": 0, "created_at": time.time(), "remixed_from": remixed_from}
    if fields.takes > settings.limits.takes:
        raise ApiError(
            400, f"{fields.takes} takes are more than the {settings.limits.takes} that are allowed",
            code="invalid_value", param="takes",
        )  # fmt: skip
    if fields.compare and fields.takes > 1:
        raise ApiError(400, "`compare` and `takes` cannot be combined", code="invalid_value", param="compare")
    try:
        if image is not None:
            config.require_framewise()
        if scene is not None:
            timeline = plan_timeline(scene, config)
            what: dict[str, Any] = {"scene": scene}
        else:
            frames = config.latent_frames(seconds)
            timeline = one_shot(fields.prompt or "", config, latent_frames=frames, image=image)
            what = {"prompt": fields.prompt, "seconds": seconds, "image": image}
        _require_seconds(timeline.seconds, settings)
        require_generated(timeline)
        require_understood(config, timeline)
        require_files(config, weights_folder())
        if fields.compare:
            require_retrieval(config.memory, timeline)
            native = dict(what) if scene is None else {"scene": native_scene(scene)}
            both = [(with_settings(config, memory="none"), native), (config, what)]
        else:
            both = [(config, what)] * fields.takes
    except LlragError as error:
        raise refused(error) from None
    group = new_id("group") if len(both) > 1 else None
    kind: Literal["takes", "comparison"] | None = None if group is None else "comparison" if fields.compare else "takes"
    jobs = tuple(
        Job(
            id=new_id(),
            config=each,
            seed=seed if fields.compare else seed + number,
            group=group,
            kind=kind,
            take=number + 1,
            **part,
            **common,
        )
        for number, (each, part) in enumerate(both)
    )
    return Plan(jobs, timeline)


def require_prompt(text: str | None, settings: ServeSettings) -> str:
    """A prompt on one line that is not empty or too long."""
    prompt = " ".join((text or "").split())
    if not prompt:
        raise ApiError(
            400, "the prompt is empty", code="invalid_value", param="prompt",
            hint="describe in a sentence what the video shows",
        )  # fmt: skip
    if len(prompt) > settings.limits.prompt:
        raise ApiError(
            400, f"the prompt has more than {settings.limits.prompt} characters", code="invalid_value", param="prompt"
        )
    return prompt


def require_model(name: str | None, settings: ServeSettings) -> str:
    """The name of a model that the server offers."""
    chosen = settings.models[0] if name is None else name
    if chosen not in settings.models:
        raise ApiError(
            404, f"unknown model `{shortened(chosen)}`", code="model_not_found", param="model",
            hint=closest(chosen[:80], settings.models),
        )  # fmt: skip
    return chosen


def require_understood(config: RunConfig, timeline: Timeline) -> None:
    """Raise ``UsageError`` for a prompt of a timeline of which the model understands nothing."""
    require_words(config, timeline.prompts)


def require_words(config: RunConfig, prompts: Iterable[str]) -> None:
    """Raise ``UsageError`` for a prompt of which the model understands nothing."""
    for prompt in prompts:
        reading = family_of(config).read_prompt(prompt)
        if prompt and reading is not None and not reading.understood:
            raise UsageError(
                f"`{config.name}` understands nothing of `{shortened(prompt)}`",
                hint="it draws coloured shapes on a wall, for example `a red circle bounces around on a blue wall`",
            )


def require_added(seconds: float | None, settings: ServeSettings) -> float:
    """The length that a video is extended by."""
    added = SECONDS if seconds is None else seconds
    _require_seconds(added, settings)
    return added


def require_generated(timeline: Timeline) -> None:
    """Raise ``UsageError`` if a clip fills the whole video."""
    if all(len(shot.blocks) == shot.given_blocks for shot in timeline.shots):
        raise UsageError(
            f"the clip fills all of the {timeline.seconds:.1f} s, so there is nothing to generate",
            hint="its length counts in the length of the video: ask for more seconds",
        )


def _require_seconds(seconds: float, settings: ServeSettings) -> None:
    try:
        require_length(seconds)
    except UsageError as error:
        raise refused(error, param="seconds") from None
    if seconds > settings.limits.seconds:
        raise ApiError(
            400, f"{seconds:g} s are longer than the {settings.limits.seconds:g} s that are allowed",
            code="invalid_value", param="seconds",
        )  # fmt: skip


def _scene(fields: Fields, resolve: Resolve) -> Scene | None:
    """The scene of a request, with the paths of identifiers; None for a prompt alone."""
    if (fields.prompt is None) == (fields.scene is None):
        problem = "give a prompt or a scene, not both" if fields.prompt is not None else "a prompt is missing"
        raise ApiError(400, problem, code="invalid_value", param="prompt")
    if fields.scene is None:
        return None
    try:
        scene = scene_from_text(fields.scene)
    except UsageError as error:
        raise refused(error, param="scene") from None
    content = scene.model_dump()
    parts = [content, *content["shots"]]
    for part in parts:
        for key in ("image", "video"):
            if part[key] is not None:
                path = resolve(str(part[key]))
                part[key] = path / "video.mp4" if path.is_dir() else path
    for reference in content["references"].values():
        reference["path"] = resolve(str(reference["path"]))
    for name in scene.settings:
        if not SAFE.fullmatch(name.partition("=")[0]):
            raise ApiError(
                400, f"the setting `{shortened(name.partition('=')[0])}` cannot be changed here", code="invalid_value",
                param="scene", hint="`memory.*` and `sampler.*` can, and `size` is a field of its own",
            )  # fmt: skip
    return Scene.model_validate(content)


def _config(fields: Fields, scene: Scene | None, settings: ServeSettings) -> RunConfig:
    """The configuration that a request asks for."""
    name = require_model(fields.model or (scene.backbone if scene else None), settings)
    memory = fields.memory or (scene.memory if scene else None)
    strategy = {"retrieval": None, "native": "none"}.get(memory or "retrieval", memory)
    if strategy is not None and strategy not in strategies_without_code():
        known = ("retrieval", "native", *strategies_without_code())
        raise ApiError(
            400, f"unknown memory strategy `{shortened(strategy)}`", code="invalid_value", param="memory",
            hint=closest(strategy[:80], known),
        )  # fmt: skip
    try:
        config = load_config(name, memory=strategy)
        config = with_settings(config, _size(fields.size, config, settings))
        config = with_settings(config, scene.settings if scene else ())
        if fields.decoder is not None:
            config = with_settings(config, [f"video.decoder={fields.decoder}"])
        family_of(config).require_settings(config)
    except LlragError as error:
        raise refused(error) from None
    return config


def _size(text: str | None, config: RunConfig, settings: ServeSettings) -> list[str]:
    if text is None:
        return []
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    upscale = config.video.upscale
    if (width, height) == (config.width * upscale, config.height * upscale):
        return []
    if width * height > settings.limits.pixels:
        raise ApiError(400, f"`{text}` is too large", code="invalid_value", param="size")
    try:
        return size_settings(config, width, height)
    except UsageError as error:
        problem = error.problem if match else f"`{shortened(text)}` is not a size"
        raise ApiError(400, problem, code="invalid_value", param="size", hint=error.hint) from None


def _with_upload(
    fields: Fields, scene: Scene | None, upload: Upload | None, config: RunConfig, resolve: Resolve
) -> tuple[Scene | None, Path | None]:
    """The scene, or the picture that opens the video of a prompt, with what was uploaded and referred to."""
    if upload is None and not fields.references:
        return scene, None
    if upload is not None and upload.kind == "picture" and scene is None and not fields.references:
        return None, upload.path
    seconds = fields.seconds if fields.seconds is not None else SECONDS
    content: dict[str, Any] = (
        {"shots": [{"prompt": fields.prompt, "seconds": float(seconds)}]} if scene is None else scene.model_dump()
    )
    if upload is not None:
        content["image" if upload.kind == "picture" else "video"] = upload.path
    references = dict(content.get("references", {}))
    for number, identifier in enumerate(fields.references, start=1):
        references[f"reference-{number}"] = {"path": resolve(identifier)}
    content["references"] = references
    try:
        return Scene.model_validate(content), None
    except ValidationError as error:
        context = error.errors(include_url=False)[0].get("ctx", {})
        problem = str(context.get("problem", first_problem(error)))
        raise ApiError(400, problem, code="invalid_value", hint=str(context.get("hint", ""))) from None
