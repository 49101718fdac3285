"""Takes of ``llrag generate``: videos of one scene under consecutive seeds, with a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llrag_cli.cli import console

if TYPE_CHECKING:
    from llrag_cli.engine.pipeline import Pipeline
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.runs.maker import Existing
    from llrag_cli.runs.record import RunRecord
    from llrag_cli.scenes.schema import Scene


def generate_takes(
    pipeline: Pipeline,
    what: str | Scene,
    folders: Sequence[RunFolder],
    *,
    seeds: Sequence[int],
    batch: int,
    existing: Existing,
    blocks: int,
    resume_with: str,
    seconds: float | None = None,
    image: Path | None = None,
) -> list[tuple[RunFolder, RunRecord]]:
    """Generate takes, so many together as fit into memory."""
    from llrag_cli.runs.maker import make_takes

    runs: list[tuple[RunFolder, RunRecord]] = []
    for first in range(0, len(folders), batch):
        together = folders[first : first + batch]
        numbers = f"{first + 1}-{first + len(together)}" if len(together) > 1 else f"{first + 1}"
        with console.generation(
            f"{pipeline.config.label}, take {numbers} of {len(folders)}",
            blocks=blocks,
            frame_rate=pipeline.config.backbone.fps,
            folder=together[0].path,
            resume_with=resume_with,
        ) as update:
            records = make_takes(
                pipeline,
                what,
                together,
                seeds=seeds[first : first + batch],
                seconds=seconds,
                existing=existing,
                image=image,
                on_progress=update,
            )
        runs += zip(together, records, strict=True)
    return runs


def show_takes(root: Path, runs: Sequence[tuple[RunFolder, RunRecord]], *, title: str, as_json: bool) -> None:
    """Write the contact sheet and print where everything is."""
    with console.working("contact sheet"):
        from llrag_cli.evaluation.takes import offline_features, write_sheet

        features = offline_features()
        sheet = write_sheet(root, runs, title=title, features=features)
    if features is None:
        console.note("takes are not ranked: that needs the extra `metrics` (`pip install 'llrag[metrics]'`)")
    if as_json:
        rows = [
            {
                "folder": str(folder.path),
                "video": str(folder.video),
                "drift": None if sheet.drift is None else sheet.drift[number],
                **record.model_dump(mode="json"),
            }
            for number, (folder, record) in enumerate(runs)
        ]
        console.result_json({"picture": str(sheet.picture), "page": str(sheet.page), "takes": rows})
        return
    order = range(len(runs)) if sheet.drift is None else sorted(range(len(runs)), key=sheet.drift.__getitem__)
    for number in order:
        drift = "" if sheet.drift is None else f"  drift {sheet.drift[number]:.4f}"
        console.result(f"{runs[number][0].video}{drift}")
    console.result(str(sheet.picture))
    console.result(str(sheet.page))
