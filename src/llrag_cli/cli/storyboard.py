"""``llrag storyboard``: the first block of every shot of a scene, as a sheet."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from llrag_cli.cli.options import BackboneName, Device, Dtype, Json, Memory, Set, configuration


def storyboard(
    file: Annotated[Path, typer.Argument(metavar="SCENE", help="Scene file, or a time line of another program")],
    backbone: BackboneName = None,
    memory: Memory = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; default: the scene's, or 0")] = None,
    settings: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the sheet; default: a new one in runs/")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier storyboard in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Preview a scene: generate one block of every shot, and lay them out as a sheet.

    Writes storyboard.png and storyboard.html. Every shot lasts one block, so
    it takes a small share of the time; cuts, switches, references and memory
    are those of the scene, but what a shot remembers is one block of each.
    """
    from llrag_cli.cli import console
    from llrag_cli.cli.generate import slug
    from llrag_cli.cli.prompts import require_understood, show_readings
    from llrag_cli.cli.scenes import planned, scene_configuration
    from llrag_cli.files.durable import require_own
    from llrag_cli.runs.folder import RunFolder, unused_folder
    from llrag_cli.scenes.reading import read_scene
    from llrag_cli.scenes.schema import Scene
    from llrag_cli.scenes.timeline import plan_timeline

    scene = read_scene(file)
    name, strategy, changes = scene_configuration(scene, backbone, memory, settings or ())
    config = configuration(name, memory=strategy, settings=changes)
    planned(scene, config, file=file)  # refuses what `generate` would
    brief = Scene.model_validate(
        scene.model_dump() | {"shots": [shot.model_dump() | {"seconds": 0.01} for shot in scene.shots]}
    )
    timeline = plan_timeline(brief, config)
    require_understood(config, timeline.prompts)
    root = out or unused_folder(Path("runs"), f"{slug(scene.title or file.stem)}-storyboard")
    folder = RunFolder(root / "run")
    folder.require_writable()
    sheets = (root / "storyboard.png", root / "storyboard.html")
    for file_ in sheets:
        require_own(file_)
    seed = scene.seed or 0 if seed is None else seed
    if not force and folder.record.exists() and not all(each.exists() for each in sheets):
        folder.require_same(config, timeline, seed=seed)  # it was interrupted, and is continued
    elif not force:
        folder.require_free()
    with console.working("loading"):
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.evaluation.takes import write_sheet
        from llrag_cli.runs.maker import make_video

        budget = memory_plan(
            config,
            device=device,
            dtype=dtype,
            seconds=timeline.seconds,
            references=timeline.reference_count,
            pinned=timeline.pinned_frames,
            switches=timeline.switches,
            prompts=timeline.prompts,
            scratch=root,
        )
        budget.require()
        pipeline = Pipeline.load(budget.config, device=device, dtype=dtype, prompts=timeline.prompts)
    show_readings(config, timeline.prompts)
    fps = config.backbone.fps
    repeated = "the same command" if out is not None else f"the same command with `--out {quote(str(root))}`"
    with console.generation(
        "storyboard", blocks=timeline.blocks, frame_rate=fps, folder=folder.path, resume_with=repeated
    ) as update:
        record = make_video(
            pipeline,
            brief,
            folder,
            seed=seed,
            existing="replace" if force else "resume",
            on_progress=update,
        )
    sheet = write_sheet(root, [(folder, record)], title=scene.title or file.stem, layout="storyboard")
    if as_json:
        console.result_json({"folder": str(root), "picture": str(sheet.picture), "page": str(sheet.page)})
        return
    console.result(str(sheet.picture))
    console.result(str(sheet.page))
