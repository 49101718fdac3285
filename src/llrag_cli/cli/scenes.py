"""Scenes of the command line: from a file, or from a prompt with further shots, own footage and references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig
    from llrag_cli.scenes.schema import Scene
    from llrag_cli.scenes.timeline import Timeline

SCENE = "Scene"  # heading of help pages
SceneFile = Annotated[
    Path | None,
    typer.Option(
        "--scene",
        metavar="FILE",
        help="Scene file (see `llrag scene new`), or a time line of scope, LongLive, StoryMem or Infinity-RoPE",
        rich_help_panel=SCENE,
    ),
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHOT",
        help="A shot that follows, as `8s: it stops and looks up` or `cut 6s: a frozen lake`; repeatable",
        rich_help_panel=SCENE,
    ),
]
Footage = Annotated[
    Path | None,
    typer.Option("--video", metavar="CLIP", help="Own footage that opens the video", rich_help_panel=SCENE),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="NAME=FILE",
        help="Picture, clip or folder of a finished run to retrieve from; repeatable",
        rich_help_panel=SCENE,
    ),
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--pin", metavar="NAME", help="Attend to a reference in every block; repeatable", rich_help_panel=SCENE
    ),
]
Takes = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        help="Videos of the same prompt or scene under consecutive seeds, with a contact sheet",
        rich_help_panel=SCENE,
    ),
]


def requested_scene(
    file: Path | None,
    *,
    text: str | None,
    seconds: float,
    seconds_given: bool = False,
    then: Sequence[str] = (),
    image: Path | None = None,
    video: Path | None = None,
    references: Sequence[str] = (),
    pins: Sequence[str] = (),
) -> Scene | None:
    """The scene that options describe; None for a plain prompt."""
    if file is None and not then and video is None and not references and not pins:
        return None
    from pydantic import ValidationError

    from llrag_cli.scenes.reading import read_scene, scene_from_prompts
    from llrag_cli.scenes.schema import Scene

    if file is not None:
        contradicting = {"a prompt": text is not None, "`--then`": bool(then), "`--image`": image is not None}
        contradicting |= {"`--video`": video is not None, "`--seconds`": seconds_given}
        for name, given in contradicting.items():
            if given:
                raise UsageError(f"{name} and `--scene` cannot be combined", hint=f"write it into `{file}`")
        scene = read_scene(file)
    elif text is None:
        raise UsageError("a prompt is missing", hint="describe in a sentence what the first shot shows")
    else:
        scene = scene_from_prompts(text, seconds, then)
    content = scene.model_dump()
    if image is not None and video is not None:
        raise UsageError("`--image` and `--video` both open the video", hint="give one of them")
    for option, path in (("image", image), ("video", video)):
        if path is not None:
            content[option] = _existing(path)
    for entry in references:
        name, mark, source = entry.partition("=")
        if not mark or not name.strip() or not source.strip():
            raise UsageError(f"`--reference {entry}` is not `NAME=FILE`", hint="for example `mara=pictures/mara.png`")
        if name in content["references"]:
            raise UsageError(f"the reference `{name}` is given twice", hint="choose another name")
        content["references"][name] = {"path": _existing(Path(source).expanduser())}
    for name in pins:
        if name not in content["references"]:
            raise UsageError(f"`--pin {name}` names no reference", hint=f"give it with `--reference {name}=FILE`")
        content["references"][name]["pinned"] = True
    try:
        return Scene.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        raise UsageError(str(context.get("problem", first["msg"])), hint=str(context.get("hint", ""))) from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint="check the path")
    return path.absolute()


def scene_configuration(
    scene: Scene | None, backbone: str | None, memory: str | None, settings: Sequence[str]
) -> tuple[str | None, str | None, list[str]]:
    """Backbone, memory strategy and settings: those of the command line, then those of the scene."""
    if scene is None:
        return backbone, memory, [*settings]
    return backbone or scene.backbone, memory or scene.memory, [*scene.settings, *settings]


def planned(scene: Scene, config: RunConfig, *, file: Path | None) -> Timeline:
    """The timeline of a scene, which must leave something to generate."""
    from llrag_cli.scenes.timeline import plan_timeline

    timeline = plan_timeline(scene, config)
    if all(len(shot.blocks) == shot.given_blocks for shot in timeline.shots):
        raise UsageError(
            f"the clip fills all of the {timeline.seconds:.1f} s, so there is nothing to generate",
            hint="its length counts in the length of the video: "
            + ("give more `--seconds`" if file is None else f"give the shot more `seconds` in `{file}`"),
        )
    return timeline
