"""``llrag inspect``: what a run recalled, when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.errors import UnwritableError
from llrag_cli.runs.folder import RunFolder, read_run


@dataclass(frozen=True)
class InspectRequest:
    """What was asked for on the command line."""

    run: Path
    out: Path | None
    as_json: bool


def run(request: InspectRequest) -> None:
    """Write the memory map of a run, and say what its memory was like."""
    folder = RunFolder(request.run)
    record, blocks = read_run(folder)
    with console.working("reading"):
        from llrag_cli.evaluation.inspect import as_record, habits, memory_map, moments, page, sentences, thumbnails

        found = habits(blocks, record.config.memory, fps=record.fps)
        wanted = {frame for block in moments(blocks) for frame in (block.frame, *block.retrieved)}
        pictures = thumbnails(folder.video, wanted) if wanted else {}
        picture = memory_map(record, blocks, pictures)
    out = request.out or folder.path
    files = {out / "memory.png": picture, out / "memory.html": page(folder, record, blocks, found, picture).encode()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            file.write_bytes(content)
    except OSError as error:
        raise UnwritableError(out, (error.strerror or str(error)).lower()) from error
    if request.as_json:
        console.result_json({**as_record(found), "files": [str(file) for file in files]})
        return
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name, text in sentences(found):
        rows.add_row(name, text)
    console.result_table(rows)
    for file in files:
        console.result(str(file))
