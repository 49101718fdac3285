"""``llrag demo``: one scene without and with memory, side by side on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import Json, Set, configuration
from llrag_cli.cli.prompts import require_understood, show_readings
from llrag_cli.errors import FolderNotEmptyError, RunDiffersError

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig
    from llrag_cli.evaluation.demo_page import Demo
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.maker import Existing
    from llrag_cli.scenes.schema import Scene
    from llrag_cli.scenes.timeline import Timeline

FILES = ("native", "memory", "demo.html", "demo.png")


def demo(
    scene: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another scene (see `llrag scene new`) that returns somewhere")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; default: the scene's, or 0")] = None,
    settings: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the demo, which continues if it was interrupted; default: in runs/")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Show what memory does: one scene, generated without and with it, played side by side.

    A place, a cut to another one, and the return under a prompt that names
    nothing. Writes demo.html, which plays both videos in step and shows what
    memory retrieved, and demo.png. Takes about a minute on two CPU cores.
    """
    from llrag_cli.cli import console
    from llrag_cli.cli.generate import slug
    from llrag_cli.cli.scenes import scene_configuration
    from llrag_cli.files.durable import require_own
    from llrag_cli.presets import with_settings
    from llrag_cli.runs.folder import RunFolder, unused_folder
    from llrag_cli.scenes.comparison import native_scene, require_retrieval
    from llrag_cli.scenes.example import demo_scene
    from llrag_cli.scenes.reading import read_scene
    from llrag_cli.scenes.timeline import plan_timeline

    # everything that can be checked early, before torch is imported
    full = demo_scene() if scene is None else read_scene(scene)
    name, strategy, changes = scene_configuration(full, None, None, settings or ())
    config = configuration(name, memory=strategy, settings=changes)
    timeline = plan_timeline(full, config)
    require_retrieval(config.memory, timeline)
    plans = [(native_scene(full), with_settings(config, memory="none")), (full, config)]
    seed = full.seed or 0 if seed is None else seed
    title = full.title or ("Demo" if scene is None else scene.stem)
    root = out or unused_folder(Path("runs"), "demo" if scene is None else f"{slug(title)}-demo")
    require_understood(config, timeline.prompts)
    folders = (RunFolder(root / "native"), RunFolder(root / "memory"))
    folders[0].require_writable()
    for name in FILES:
        require_own(root / name, folder=name in ("native", "memory"))
    if not force:
        _require_free(root)
        for folder, (part, each) in zip(folders, plans, strict=True):
            _require_same(folder, plan_timeline(part, each), each, seed)

    missing = [pair for pair in zip(folders, plans, strict=True) if force or not _is_finished(pair[0], timeline)]
    if missing:
        _generate(missing, config, timeline, seed=seed, root=root, force=force)
    with console.working("page"):
        from llrag_cli.evaluation.demo_page import read_demo, write_demo

        shown = read_demo(root, *folders, title=title)
        write_demo(shown)
    if as_json:
        console.result_json(content_of(shown))
        return
    console.note(shown.sentence)
    console.result(str(shown.picture))
    console.result(str(shown.page))


def _is_finished(folder: RunFolder, timeline: Timeline) -> bool:
    return folder.record.exists() and folder.is_finished(folder.read_record(), seconds=timeline.seconds)


def _generate(
    runs: Sequence[tuple[RunFolder, tuple[Scene, RunConfig]]],
    config: RunConfig,
    timeline: Timeline,
    *,
    seed: int,
    root: Path,
    force: bool,
) -> None:
    """Generate runs with the same weights; what ``config`` retrieves decides how much memory is planned for."""
    from llrag_cli.cli import console
    from llrag_cli.presets import with_settings

    with console.working("loading"):
        from llrag_cli.engine.pipeline import Pipeline, memory_plan
        from llrag_cli.runs.maker import make_video

        budget = memory_plan(
            config,
            device="auto",
            dtype="auto",
            seconds=timeline.seconds,
            references=timeline.reference_count,
            pinned=timeline.pinned_frames,
            switches=timeline.switches,
            prompts=timeline.prompts,
            scratch=root,
        )
        budget.require()
        pipeline = Pipeline.load(budget.config, prompts=timeline.prompts)
    show_readings(config, timeline.prompts)
    for number, (folder, (scene, each)) in enumerate(runs, start=1):
        planned = budget.config if each == config else with_settings(budget.config, memory=each.memory.strategy)
        with console.generation(
            f"{planned.label} {number}/{len(runs)}",
            blocks=timeline.blocks,
            frame_rate=timeline.fps,
            folder=folder.path,
            resume_with=f"the same command with `--out {root}`",
        ) as update:
            existing: Existing = "replace" if force else "resume"
            one = pipeline.with_memory(planned)
            make_video(one, scene, folder, seed=seed, existing=existing, on_progress=update)


def _require_free(root: Path) -> None:
    """Raise an error if a folder has files that are not those of a demo, or partial ones that were left of them."""
    if root.is_dir() and any(not path.name.startswith(FILES) for path in root.iterdir()):
        raise FolderNotEmptyError(root)


def _require_same(folder: RunFolder, timeline: Timeline, config: RunConfig, seed: int) -> None:
    """Raise an error if a folder has another run, or other files; one of the same settings will be continued."""
    if not folder.record.exists():
        folder.require_free()
        return
    folder.require_same(config, timeline, seed=seed)
    if folder.read_record().timeline.blocks > timeline.blocks:
        raise RunDiffersError(folder.path, ["seconds"])


def content_of(shown: Demo) -> dict[str, Any]:
    """The result as JSON."""
    from dataclasses import asdict

    found = shown.found
    sights: dict[str, Any] = {}
    if shown.sights is not None:
        sights = dict(zip(("native", "memory"), map(asdict, shown.sights), strict=True))
    return {
        "folder": str(shown.root),
        "page": str(shown.page),
        "picture": str(shown.picture),
        "videos": {"native": str(shown.native.video), "memory": str(shown.memory.video)},
        "sentence": shown.sentence,
        "shot": None if found is None else found.shot.name,
        "place": None if found is None else found.place.name,
        "seconds": None if found is None else shown.timeline.extent(found.shot).start_seconds,
        "measured": sights or None,
    }
