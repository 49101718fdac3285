"""``llrag inspect``: what a run retrieved, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.hints import video_again
from llrag_cli.cli.options import Json


def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a video")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for memory.png and memory.html; default: the run's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run retrieved and when: a map with thumbnails, and statistics of its memory."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.errors import UnwritableError
    from llrag_cli.files.durable import create_folder, replace_bytes, require_own
    from llrag_cli.runs.folder import RunFolder, read_run

    folder = RunFolder(run)
    record, blocks = read_run(folder)  # an error before anything is imported that takes time
    parent = out or folder.path
    RunFolder(parent).require_writable()
    picture_file, page_file = parent / "memory.png", parent / "memory.html"
    for file in (picture_file, page_file):
        require_own(file)
    if folder.video_has_changed(record):
        console.warn(f"`{folder.video}` has changed since it was written; {video_again(folder)}")
    with console.working("reading"):
        from llrag_cli.evaluation.inspect import describe, example_blocks, memory_stats, require_known_frames
        from llrag_cli.evaluation.memory_map import draw_memory_map
        from llrag_cli.evaluation.memory_page import memory_json, memory_page
        from llrag_cli.evaluation.thumbnails import reference_thumbnails, thumbnails

        require_known_frames(folder, record, blocks)
        config, timeline = record.config, record.timeline
        stats = memory_stats(blocks, config, timeline)
        frames = {frame for block in example_blocks(blocks) for frame in (block.frame, *block.retrieved)}
        made = {frame for frame in frames if frame >= 0}
        pictures = thumbnails(folder.video, made, config) if made else {}
        pictures |= reference_thumbnails(timeline, frames - made, config)
        picture = draw_memory_map(config, blocks, pictures, timeline)
        page = memory_page(folder, record, blocks, stats, picture)
    files = {picture_file: picture, page_file: page.encode()}
    try:
        create_folder(parent)
    except OSError as error:
        raise UnwritableError(parent, (error.strerror or str(error)).lower()) from error
    for file, content in files.items():
        replace_bytes(file, content)
    if as_json:
        console.result_json({**memory_json(record, blocks, stats), "files": [str(file) for file in files]})
        return
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name, text in describe(stats, timeline):
        rows.add_row(name, text)
    console.result_table(rows)
    for file in files:
        console.result(str(file))
