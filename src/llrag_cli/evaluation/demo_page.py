"""The page of ``llrag demo``: a scene without and with memory, played in step, and what memory retrieved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llrag_cli.evaluation.demo import Return, Sight, find_return, measure, percent, sentence
from llrag_cli.evaluation.memory_page import memory_json, remembers, summary
from llrag_cli.evaluation.rendition import renditions
from llrag_cli.evaluation.scene_map import REFERENCE, SHOTS
from llrag_cli.evaluation.sheet import PIXEL_ART, SheetRow, contact_sheet, sheet_columns, shot_pictures
from llrag_cli.evaluation.thumbnails import reference_thumbnails, thumbnail_url, thumbnails
from llrag_cli.files.durable import replace_text, replacing
from llrag_cli.files.html import data_url, render
from llrag_cli.models.family import family_of
from llrag_cli.runs.folder import BlockMemory, RunFolder, read_run
from llrag_cli.runs.record import RunRecord
from llrag_cli.scenes.timeline import Timeline

EMBEDDED_BYTES = 64 * 2**20  # of video renditions that the page embeds; beyond it, videos are linked
CRF = 18  # x264 quality of the renditions: they are what the page is about
THUMBNAIL = 128  # pixels, the longer side


@dataclass(frozen=True)
class Demo:
    """Two finished runs of a scene, and what was measured of them."""

    root: Path
    title: str
    native: RunFolder
    memory: RunFolder
    records: tuple[RunRecord, RunRecord]  # native, memory
    blocks: tuple[BlockMemory, ...]  # of the run with memory
    found: Return | None
    sights: tuple[Sight, Sight] | None  # native, memory

    @property
    def timeline(self) -> Timeline:
        """The shots, with all references."""
        return self.records[1].timeline

    @property
    def sentence(self) -> str:
        """What to look at."""
        return sentence(self.timeline, self.found, *(self.sights or (None, None)))

    @property
    def page(self) -> Path:
        """The file that plays both videos."""
        return self.root / "demo.html"

    @property
    def picture(self) -> Path:
        """The still picture."""
        return self.root / "demo.png"


def read_demo(root: Path, native: RunFolder, memory: RunFolder, *, title: str) -> Demo:
    """Read two finished runs, and measure what they show where the scene returns."""
    (without, _), (record, blocks) = read_run(native), read_run(memory)
    found, sights = find_return(record.timeline, blocks), None
    if found is not None and family_of(record.config).shows_sprites:
        sights = (measure(native.video, record.timeline, found), measure(memory.video, record.timeline, found))
    return Demo(root, title, native, memory, (without, record), blocks, found, sights)


def write_demo(demo: Demo) -> None:
    """Write ``demo.html`` and ``demo.png``."""
    with replacing(demo.picture) as partial:
        partial.write_bytes(still(demo))
    replace_text(demo.page, demo_page(demo))


def still(demo: Demo) -> bytes:
    """A PNG: without memory above, with it below; of each shot the middle frame, the first and the last."""
    about = ("recent frames only", "recent and retrieved frames")
    rows = [
        SheetRow(
            label=label,
            pictures=shot_pictures(folder.video, record.timeline, upscale=record.config.video.upscale),
            folder=text,
        )
        for label, folder, record, text in zip(
            ("without memory", "with memory"), (demo.native, demo.memory), demo.records, about, strict=True
        )
    ]
    return contact_sheet(rows, sheet_columns(demo.timeline), title=f"{demo.title}: one seed, without and with memory")


def demo_page(demo: Demo, *, limit: int = EMBEDDED_BYTES) -> str:
    """One HTML page for the folder of the demo, complete in itself unless its videos are too large to embed."""
    record = demo.records[1]
    folders = (demo.native, demo.memory)
    copies = renditions([(folder.video, 1) for folder in folders], limit=limit, crf=CRF)
    sources = (
        [quote(folder.video.relative_to(demo.root).as_posix()) for folder in folders]
        if copies is None
        else [data_url(copy, "video/mp4") for copy in copies]
    )
    timeline, config = demo.timeline, record.config
    left_out = [name for name in timeline.reference_frames if name not in demo.records[0].timeline.reference_frames]
    return render(
        "demo.html",
        title=demo.title,
        sentence=demo.sentence,
        look=None if demo.found is None else timeline.extent(demo.found.shot).start_seconds,
        places=max(len(block.retrieved) for block in demo.blocks),
        aspect=f"{config.width} / {config.height}",
        height=config.height / config.width,
        pixelated=max(config.width, config.height) <= PIXEL_ART,
        linked=copies is None,
        measured=_measured(demo),
        left_out=left_out,
        rows=[
            ("scene", summary(timeline)),
            ("seed", record.seed),
            ("without memory", f"{demo.records[0].config.label}, `{demo.native.path.name}/`"),
            ("with memory", f"{config.label}, `{demo.memory.path.name}/`"),
            ("length", f"{timeline.video_frames} frames, {timeline.seconds:.1f} s at {timeline.fps} frames a second"),
            ("llrag", record.versions.get("llrag", "")),
        ],
        data=page_data(demo, sources),
    )


def page_data(demo: Demo, sources: Sequence[str]) -> dict[str, Any]:
    """What the page's script plays: videos, shots, and for every block when it begins and what it retrieved."""
    record, timeline = demo.records[1], demo.timeline
    config = record.config
    log = {entry["block"]: entry for entry in memory_json(record, demo.blocks, None)["log"]}
    frames = {frame for block in demo.blocks for frame in block.retrieved}
    made = {frame for frame in frames if frame >= 0}
    pictures = thumbnails(demo.memory.video, made, config, side=THUMBNAIL) if made else {}
    pictures |= reference_thumbnails(timeline, frames - made, config)
    colors = {shot.name: SHOTS[number % len(SHOTS)] for number, shot in enumerate(timeline.shots)}
    return {
        "fps": timeline.fps,
        "seconds": timeline.seconds,
        "sources": sources,
        "shots": [_shot(demo, number, colors) for number in range(len(timeline.shots))],
        "blocks": [
            {
                "start": max(0, config.video_frames(block.frame)) / timeline.fps,
                "retrieved": [
                    {**frame, "color": colors.get(frame["source"], REFERENCE)}
                    for frame in log.get(number, {"retrieved": []})["retrieved"]
                ],
            }
            for number, block in enumerate(demo.blocks)
        ],
        "thumbnails": {frame: thumbnail_url(picture) for frame, picture in pictures.items()},
    }


def _shot(demo: Demo, number: int, colors: dict[str, str]) -> dict[str, Any]:
    shot = demo.timeline.shots[number]
    extent = demo.timeline.extent(shot)
    return {
        "name": shot.name,
        "prompt": shot.prompt,
        "kind": shot.kind,
        "start": extent.start_seconds,
        "end": extent.end_seconds,
        "remembers": remembers(demo.records[1], shot),
        "color": colors[shot.name],
    }


def _measured(demo: Demo) -> dict[str, Any] | None:
    """The table of what was measured; None if nothing was."""
    if demo.sights is None or demo.found is None:
        return None
    native, memory = demo.sights
    rows = [("wall", native.wall, memory.wall), ("colours of its objects", native.color, memory.color)]
    rows.append(("shapes of its objects", native.shape, memory.shape))
    return {
        "shot": demo.found.shot.name,
        "place": demo.found.place.name,
        "rows": [(name, percent(without), percent(kept)) for name, without, kept in rows],
    }
