"""The scene: shots in order, what each may remember, references. Frozen and strict; a wrong scene does not exist."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from llrag_cli.errors import closest
from llrag_cli.files.settings import Config
from llrag_cli.memory.own import strategies_without_code

RESERVED = ("all", "none")
OWN_RULE = "leave it out, and name the rule where you start the video"
NAME = re.compile(r"\w(?:[\w .-]{0,62}\w)?")  # file names are made of it
AUTOMATIC = re.compile(r"shot-(\d+)")
MOST_SHOTS = 1000
LONGEST = 24 * 3600.0  # seconds of a shot

Location = tuple[str | int, ...]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


def problem(sentence: str, hint: str = "") -> PydanticCustomError:
    """An error for pydantic that carries a finished sentence and a hint."""
    return PydanticCustomError("scene", "{problem}", {"problem": sentence, "hint": hint})


def _written(value: object) -> object:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise problem("a path must be text", "relative paths start at the folder of the scene file")
    return value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # `~nobody`
        return path


def _text(value: object) -> object:
    """Text on one line: a prompt may be wrapped over several lines of the file."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _remembered(value: object) -> object:
    if value in RESERVED:
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        if not value:
            raise problem("`remember` is an empty list", "write `none`, or the names of shots and references")
        return tuple(value)
    raise problem(
        "`remember` must be `all`, `none` or a list of names of shots and references",
        "for example `remember: [arrival, mara]`",
    )


File = Annotated[Path, BeforeValidator(_written), AfterValidator(_expanded)]
Text = Annotated[str, BeforeValidator(_text), Field(max_length=20_000)]
Remember = Annotated[
    Literal["all", "none"] | tuple[str, ...],
    BeforeValidator(_remembered),
    WithJsonSchema(
        {"anyOf": [{"enum": ["all", "none"]}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]


class Reference(Config):
    """A picture, a clip or a finished run whose frames are memory. In a file, a path alone is enough."""

    path: File = Field(description="a picture, a clip, or the folder of a finished run")
    prompt: Text = Field(default="", description="prompt under which its frames are encoded; empty: none")
    pinned: bool = Field(
        default=False, strict=True, description="attended by every block of the shots that may remember it"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str | Path) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """A path, or a mapping with ``path``."""
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core_schema))]}


class Shot(Config):
    """A stretch of video under one prompt."""

    name: str | None = Field(default=None, description="name in `remember` and of files; by default `shot-1`, ...")
    prompt: Text = Field(description="what the shot shows; the style of the scene goes before it")
    seconds: float = Field(
        strict=True, gt=0, le=LONGEST, allow_inf_nan=False, description="length in seconds, rounded to whole blocks"
    )
    cut: bool = Field(
        default=False,
        strict=True,
        description="start a new picture and drop the window; without it the picture continues (a switch)",
    )
    remember: Remember = Field(
        default="all", description="`all` earlier shots and the references, `none`, or a list of their names"
    )
    sink: Literal["keep", "drop"] | None = Field(
        default=None,
        description="at a cut, whether the sink frames stay attended; by default if the shot may remember their shot",
    )
    recache: Literal["keep", "renew", "none"] | None = Field(
        default=None,
        description="at a switch, encode the window again under the new prompt and `keep` the sink, "
        "`renew` the sink too, or `none`; by default `memory.recache`",
    )
    seed: Seed | None = Field(default=None, description="seed of the shot; by default the seed of the scene")
    image: File | None = Field(default=None, description="picture that opens the shot")
    video: File | None = Field(default=None, description="clip that opens the shot; its length counts in `seconds`")

    @field_validator("name")
    @classmethod
    def _usable(cls, name: str | None) -> str | None:
        return name if name is None else usable_name(name)

    @field_validator("prompt")
    @classmethod
    def _worded(cls, prompt: str) -> str:
        if not prompt:
            raise problem("the prompt is empty", "describe what the shot shows")
        return prompt

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.image is not None and self.video is not None:
            raise problem("`image` and `video` both open the shot", "give one of them")
        if self.cut and self.recache is not None:
            raise problem("`recache` applies to a switch, but this shot is a cut", "a cut drops the window; remove it")
        return self


class Scene(Config):
    """A film-maker's scene: shots in order, and what they share."""

    title: str = Field(default="", max_length=200, description="name of the scene")
    backbone: str | None = Field(default=None, description="name of a backbone, or a YAML file")
    seed: Seed | None = Field(default=None, description="seed of the noise; by default the seed of the run")
    style: Text = Field(default="", description="put before the prompt of every shot, with a comma")
    set: dict[str, JsonValue] = Field(
        default_factory=dict, description="settings of the backbone's configuration, nested or with dots"
    )
    memory: str | None = Field(default=None, description="memory strategy; by default the backbone's own")
    references: dict[str, Reference] = Field(
        default_factory=dict, description="pictures, clips and finished runs that are memory, by name"
    )
    image: File | None = Field(default=None, description="picture that opens the scene")
    video: File | None = Field(default=None, description="clip that opens the scene; it counts in the first `seconds`")
    takes: int = Field(default=1, strict=True, ge=1, le=256, description="videos of the scene, each with its own seed")
    shots: tuple[Shot, ...] = Field(min_length=1, max_length=MOST_SHOTS, description="the shots, in order")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        errors = [
            InitErrorDetails(type=problem(sentence, hint), loc=where, input=None)
            for where, sentence, hint in islice(_problems(self), 20)
        ]
        if errors:
            raise ValidationError.from_exception_data("Scene", errors)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each shot."""
        return tuple(shot.name or f"shot-{number}" for number, shot in enumerate(self.shots, start=1))

    @property
    def seconds(self) -> float:
        """The requested length."""
        return sum(shot.seconds for shot in self.shots)

    @property
    def settings(self) -> tuple[str, ...]:
        """What stands under ``set``, as ``key=value`` with dotted keys."""
        return tuple(f"{name}={json.dumps(value)}" for name, value in _flattened(self.set))

    def prompt(self, index: int) -> str:
        """The full prompt of a shot: the style, a comma, the shot's own prompt."""
        style = self.style.rstrip(" ,")
        return f"{style}, {self.shots[index].prompt}" if style else self.shots[index].prompt

    def opening(self, index: int) -> tuple[Path | None, Path | None]:
        """The image and the video that open a shot, at most one of them."""
        shot = self.shots[index]
        if index == 0:
            return shot.image or self.image, shot.video or self.video
        return shot.image, shot.video


def usable_name(name: str) -> str:
    """The name, if a shot or reference may have it."""
    if name in RESERVED:
        raise problem(f"`{name}` is reserved: it is a choice of `remember`", "choose another name")
    if not NAME.fullmatch(name):
        raise problem(
            f"`{name[:80]}` cannot be a name",
            "a name has up to 64 letters, digits, spaces, `-`, `_` and `.`, and begins and ends with a letter or digit",
        )
    return name


def _flattened(settings: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _problems(scene: Scene) -> Iterator[tuple[Location, str, str]]:
    """Where a scene contradicts itself: location, sentence, hint."""
    yield from _code(scene)
    yield from _repeated_settings(scene)
    yield from _names(scene)
    if sum(path is not None for path in (scene.image, scene.video, scene.shots[0].image, scene.shots[0].video)) > 1:
        yield ("shots", 0), "more than one picture or clip opens the scene", "keep one `image` or `video`"
    positions = {name: index for index, name in enumerate(scene.names)}
    for index, shot in enumerate(scene.shots):
        yield from _remember(shot, index, positions, scene)
        if index and not shot.cut:
            for key in ("image", "video"):
                if getattr(shot, key) is not None:
                    sentence = f"`{key}` opens a new picture, but this shot continues the one before"
                    yield ("shots", index, key), sentence, "add `cut: true`"
            if shot.sink is not None:
                yield ("shots", index, "sink"), "`sink` applies to a cut, but this shot is a switch", "remove it"


def _code(scene: Scene) -> Iterator[tuple[Location, str, str]]:
    """A memory rule from outside the package is code, which no file may ask for, in whatever way it is written."""
    settings = [(name.partition("=")[0].strip(), value) for name, value in _flattened(scene.set)]
    chosen: list[tuple[Location, JsonValue]] = [(("memory",), scene.memory)] if scene.memory is not None else []
    chosen += [(("set",), value) for name, value in settings if name == "memory.strategy"]
    known = strategies_without_code()
    for where, name in chosen:
        if name not in known and (name == "own" or ":" in str(name)):
            yield where, "a scene cannot choose a memory rule from outside the package, which is code", OWN_RULE
        elif name not in known:
            yield where, f"unknown memory strategy `{str(name)[:80]}`", closest(str(name)[:80], known)
    for name, _ in settings:
        if name == "memory.rule":
            yield ("set",), "a scene cannot choose a memory rule from outside the package, which is code", OWN_RULE
    for name, _ in _flattened(scene.set):
        if name != name.strip() or "=" in name:
            yield ("set",), f"`{name[:80]}` is not the name of a setting", "for example `memory.retrieved`"


def _repeated_settings(scene: Scene) -> Iterator[tuple[Location, str, str]]:
    for key, count in Counter(key for key, _ in _flattened(scene.set)).items():
        if count > 1:
            yield ("set",), f"the setting `{key}` is given twice", "keep one of them"


def _names(scene: Scene) -> Iterator[tuple[Location, str, str]]:
    for name in scene.references:
        try:
            usable_name(name)
        except PydanticCustomError as error:
            yield ("references", name), error.context["problem"], error.context["hint"]  # type: ignore[index]
    users: dict[str, str] = {name: f"the reference `{name}`" for name in scene.references}
    for index, name in enumerate(scene.names):
        number = AUTOMATIC.fullmatch(name)
        where: Location = ("shots", index, "name")
        if name in users:
            yield where, f"the name `{name}` is used twice: {users[name]} has it too", "choose another name"
        elif number and name != f"shot-{index + 1}":
            yield where, f"`{name}` is the automatic name of shot {number[1]}", "choose another name"
        users.setdefault(name, f"shot {index + 1}")


def _remember(
    shot: Shot, index: int, positions: Mapping[str, int], scene: Scene
) -> Iterator[tuple[Location, str, str]]:
    where: Location = ("shots", index, "remember")
    for name in () if isinstance(shot.remember, str) else shot.remember:
        if positions.get(name, -1) > index:
            sentence = f"`{name}` cannot be remembered: it is shot {positions[name] + 1}, which comes later"
            yield where, sentence, "name earlier shots"
        elif name not in positions and name not in scene.references:
            known = (*scene.names[: index + 1], *scene.references)
            yield (
                where,
                f"`remember` names `{name[:80]}`, which is neither a shot nor a reference",
                closest(name[:80], known),
            )


def scene_json_schema() -> dict[str, Any]:
    """JSON schema of a scene file, for editors that complete and check YAML."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Scene.model_json_schema(),
        "title": "llrag scene",
    }
