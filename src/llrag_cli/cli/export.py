"""``llrag export``: the shots of a run as files for an editing program."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llrag_cli.cli.hints import video_again
from llrag_cli.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llrag_cli.runs.export import ShotFile
    from llrag_cli.scenes.timeline import Timeline


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a video")],
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: export in the run's own")] = None,
    crf: Annotated[
        int, typer.Option(min=0, max=51, help="x264 quality of the shots: 0 lossless, 51 worst", show_default=True)
    ] = 12,
    timeline: Annotated[
        bool, typer.Option("--timeline/--no-timeline", help="Write timeline.otio, which needs the extra `edit`")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder with other files; those of the same name are replaced")
    ] = False,
    as_json: Json = False,
) -> None:
    r"""Export the shots of a run: one mp4 per shot, and a timeline for an editing program.

    Writes video.mp4 (the whole video, not encoded again, with a chapter per
    shot), 01-NAME.mp4 and so on (the shots, cut to the exact frame) and
    timeline.otio (OpenTimelineIO; refers to the shots by file name, so the
    folder can be moved). The same command replaces an earlier export.

    timeline.otio needs the extra `edit`: pip install 'llrag\[edit]'.
    """
    from llrag_cli.cli import console
    from llrag_cli.errors import DamagedRunError, NotARunError, UsageError
    from llrag_cli.files.durable import require_own
    from llrag_cli.runs.folder import RunFolder

    folder = RunFolder(run)
    record = folder.read_record()
    if not folder.video.is_file():
        raise NotARunError(run, missing=folder.video.name)
    if folder.video_has_changed(record):
        raise UsageError(f"`{folder.video}` has changed since it was written", hint=video_again(folder))
    parent = out or run / "export"
    if out is None:
        require_own(parent, folder=True)  # a folder of the run, not one that is given
    RunFolder(parent).require_writable()
    with console.working("loading"):
        from llrag_cli.runs.edit import require_opentimelineio, write_otio
        from llrag_cli.runs.export import claim_folder, count_frames, export_chapters, export_shot, shot_files

        if timeline:
            require_opentimelineio()
        shots = record.timeline
        written = count_frames(folder.video)
    if written > shots.video_frames or (record.is_complete and written < shots.video_frames):
        raise DamagedRunError(folder.video, f"it has {written} frames instead of {shots.video_frames}")
    planned = shot_files(shots, frames_written=written)
    files = [file for file in planned if file.frames]
    if not files:
        hint = f"`llrag generate --resume {shlex.quote(str(run))}` continues the run"
        raise UsageError(f"`{folder.video}` has no frames yet", hint=hint)
    video, edit = parent / "video.mp4", parent / "timeline.otio"
    targets = [video, *(parent / file.name for file in files), *([edit] if timeline else [])]
    claim_folder(parent, [target.name for target in targets], force=force)
    with console.counting("exporting", total=len(targets)) as advance:
        export_chapters(folder.video, shots, video, frames_written=written)
        advance(1)
        for file in files:
            export_shot(video, file, parent, fps=shots.fps, crf=crf)  # the copy has an index, for fast seeking
            advance(1, file.shot.name)
        if timeline:
            write_otio(edit, files, name=run.resolve().name, fps=shots.fps, seed=record.seed)
            advance(1, "")
    for sentence in unfinished(planned, shots):
        console.note(sentence)
    if as_json:
        console.result_json(
            {
                "folder": str(parent),
                "video": str(video),
                "timeline": str(edit) if timeline else None,
                "fps": shots.fps,
                "shots": [
                    {
                        "name": file.shot.name,
                        "file": str(parent / file.name) if file.frames else None,
                        "prompt": file.shot.prompt,
                        "kind": file.shot.kind,
                        "first_frame": shots.extent(file.shot).video_frames.start,
                        "frames": len(file.frames),
                        "complete": file.is_complete,
                    }
                    for file in planned
                ],
            }
        )
        return
    for target in targets:
        console.result(str(target))


def unfinished(files: Sequence[ShotFile], timeline: Timeline) -> list[str]:
    """What an unfinished run lacks, in sentences."""
    sentences = [
        f"`{file.shot.name}` is incomplete: {len(file.frames)} of {len(timeline.extent(file.shot).video_frames)} frames"
        for file in files
        if file.frames and not file.is_complete
    ]
    missing = [f"`{file.shot.name}`" for file in files if not file.frames]
    return [*sentences, f"not generated yet: {', '.join(missing)}"] if missing else sentences
