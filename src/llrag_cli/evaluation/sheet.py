"""The contact sheet of a scene, as a PNG and as one page: a row for each take, a column for each shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from PIL import Image

from llrag_cli.evaluation.canvas import Canvas, Scheme, Style, wrap
from llrag_cli.evaluation.rendition import renditions
from llrag_cli.files.html import data_url, render
from llrag_cli.runs.video import open_video
from llrag_cli.scenes.timeline import Timeline

Layout = Literal["takes", "storyboard"]

EMBEDDED_BYTES = 32 * 2**20  # of video renditions that a page embeds; beyond it, videos are linked
LONGER_SIDE = 448  # pixels of a picture, at most
PIXEL_ART = 128  # pixels; frames up to this size are enlarged without smoothing
CRF = 22  # x264 quality of the renditions: shots are looked at closely, one by one
MISSING = "not generated"


@dataclass(frozen=True)
class SheetColumn:
    """A shot: its name, its times in the video, and its prompt."""

    name: str
    start_seconds: float
    end_seconds: float
    prompt: str

    @property
    def times(self) -> str:
        """Start and end, in seconds."""
        return f"{self.start_seconds:.1f}–{self.end_seconds:.1f} s"


@dataclass(frozen=True)
class ShotPictures:
    """Frames of a shot: the middle one, and for a take also the first and the last, where they exist."""

    middle: Image.Image
    first: Image.Image | None = None
    last: Image.Image | None = None


@dataclass(frozen=True)
class Score:
    """A number that takes are compared by, and a take's rank, 1 for the best."""

    heading: str
    value: float
    rank: int | None = None

    @property
    def text(self) -> str:
        """Heading and value."""
        return f"{self.heading} {self.value:.4f}" if abs(self.value) < 2 else f"{self.heading} {self.value:.2f}"


@dataclass(frozen=True)
class SheetRow:
    """A take: its pictures by shot, None for a shot that was not generated."""

    label: str
    pictures: tuple[ShotPictures | None, ...]
    folder: str = ""
    score: Score | None = None
    video: Path | None = None  # played on the page
    upscale: int = 1  # of that video


def sheet_columns(timeline: Timeline) -> list[SheetColumn]:
    """The columns of a scene's sheet."""
    extents = [timeline.extent(shot) for shot in timeline.shots]
    return [
        SheetColumn(shot.name, extent.start_seconds, extent.end_seconds, shot.prompt)
        for shot, extent in zip(timeline.shots, extents, strict=True)
    ]


def shot_pictures(
    video: Path, timeline: Timeline, *, upscale: int = 1, layout: Layout = "takes"
) -> tuple[ShotPictures | None, ...]:
    """The pictures of every shot of a video, of which each pixel was enlarged to ``upscale`` x ``upscale``.

    The file is read once. None stands for a shot whose middle frame it does not have.
    """
    ranges = [timeline.extent(shot).video_frames for shot in timeline.shots]
    middles = [frames[len(frames) // 2] for frames in ranges]
    ends = [frame for frames in ranges for frame in (frames[0], frames[-1])] if layout == "takes" else []
    wanted, frames = {*middles, *ends}, {}
    opened = open_video(video)
    scale = max(upscale, max(opened.width, opened.height) / LONGER_SIDE)
    size = (max(1, round(opened.width / scale)), max(1, round(opened.height / scale)))
    for number, frame in enumerate(opened.frames):  # [3, H, W] in [0, 1]
        if number in wanted:
            pixels = (255 * frame.permute(1, 2, 0)).round().byte().numpy()
            frames[number] = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX)
        if number >= max(wanted):
            opened.close()
            break
    return tuple(
        ShotPictures(frames[middle], *(frames.get(end) for end in (span[0], span[-1]) if layout == "takes"))
        if middle in frames
        else None
        for span, middle in zip(ranges, middles, strict=True)
    )


# The picture

TITLE = Style(22, 30, bold=True)
NAME = Style(14, 20, bold=True)
SMALL = Style(12, 17)
RANK = Style(11, 18, bold=True)
MARGIN, GAP, PAIR_GAP = 32, 16, 4  # pixels: around the sheet, between cells, between the first and the last frame
BAND_GAP = 32  # below the rows of a band
LABEL = 168  # width of the labels
WIDEST = 2048  # pixels of a sheet
PROMPT_LINES: dict[Layout, int] = {"takes": 3, "storyboard": 5}


def contact_sheet(
    rows: Sequence[SheetRow],
    columns: Sequence[SheetColumn],
    *,
    title: str = "",
    layout: Layout = "takes",
    scheme: Scheme = "light",
) -> bytes:
    """A PNG. Long rows are broken into bands of a few shots, one below the other, each with all takes.

    In a ``storyboard`` there is one row without a label; names and prompts are beneath its pictures.
    """
    sheet = _Sheet(rows, columns, layout)
    canvas = Canvas(sheet.width, sheet.height(title), scheme=scheme)
    y = MARGIN
    if title:
        y = canvas.text(
            MARGIN, y, wrap(title, TITLE, width=sheet.width - 2 * MARGIN, lines=2), TITLE, color=canvas.palette.ink
        )
        y += GAP
    for band in sheet.bands:
        y = sheet.draw_band(canvas, y, band)
    return canvas.png()


class _Sheet:
    """Where things are on a sheet: cells of one size in bands of equal length."""

    def __init__(self, rows: Sequence[SheetRow], columns: Sequence[SheetColumn], layout: Layout) -> None:
        self.rows, self.columns, self.layout = rows, columns, layout
        self.left = MARGIN + (LABEL + GAP if layout == "takes" else 0)
        pictures = [pictures.middle for row in rows for pictures in row.pictures if pictures is not None]
        width, height = pictures[0].size if pictures else (16, 9)
        self.cell = self._cell_width(len(rows) * len(columns), landscape=width > 1.2 * height)
        self.picture = round(self.cell * height / width)
        self.small = (self.cell - PAIR_GAP) // 2  # width of the first and the last frame
        self.small_height = round(self.small * height / width)
        fitting = max(1, (WIDEST - MARGIN - self.left + GAP) // (self.cell + GAP))
        bands = ceil(len(columns) / fitting)
        length = ceil(len(columns) / bands)
        self.bands = [range(start, min(start + length, len(columns))) for start in range(0, len(columns), length)]
        self.width = self.left + length * (self.cell + GAP) - GAP + MARGIN

    def _cell_width(self, cells: int, *, landscape: bool) -> int:
        """Sheets of many pictures have smaller ones; multiples of 64 keep the pixels of tiny frames equal."""
        unit = 80 if landscape else 64
        return unit * (4 if cells <= 24 else 3 if cells <= 96 else 2)

    def height(self, title: str) -> int:
        """Height of the whole sheet."""
        head = len(wrap(title, TITLE, width=self.width - 2 * MARGIN, lines=2)) * TITLE.leading + GAP if title else 0
        return MARGIN + head + sum(map(self._band_height, self.bands)) + MARGIN - BAND_GAP + GAP // 2

    def _caption_height(self, band: range) -> int:
        prompts = [self._prompt(column) for column in band]
        return NAME.leading + SMALL.leading * (1 + max(map(len, prompts))) + GAP // 2

    def _prompt(self, column: int) -> list[str]:
        return wrap(self.columns[column].prompt, SMALL, width=self.cell, lines=PROMPT_LINES[self.layout])

    @property
    def _row_height(self) -> int:
        ends = PAIR_GAP + self.small_height if self.layout == "takes" else 0
        return max(self.picture + ends, self._label_height if self.layout == "takes" else 0) + GAP

    @property
    def _label_height(self) -> int:
        return 2 * NAME.leading + 4 * SMALL.leading + RANK.leading + 12

    def _band_height(self, band: range) -> int:
        return self._caption_height(band) + len(self.rows) * self._row_height + BAND_GAP - GAP

    def draw_band(self, canvas: Canvas, y: int, band: range) -> int:
        """Draw some shots of all takes below ``y``; returns where the next band begins."""
        end = y + self._band_height(band)
        if self.layout == "takes":
            self._draw_captions(canvas, y, band)
            y += self._caption_height(band)
        for index, row in enumerate(self.rows):
            if self.layout == "takes":
                if index:
                    canvas.rule(y - GAP // 2, left=MARGIN, right=self.width - MARGIN)
                self._draw_label(canvas, y, row)
            for number, column in enumerate(band):
                self._draw_cell(canvas, self._x(number), y, row.pictures[column])
            y += self._row_height
        if self.layout == "storyboard":
            self._draw_captions(canvas, y - GAP // 2, band)
        return end

    def _x(self, number: int) -> int:
        return self.left + number * (self.cell + GAP)

    def _draw_captions(self, canvas: Canvas, y: int, band: range) -> None:
        for number, index in enumerate(band):
            x, column = self._x(number), self.columns[index]
            name = wrap(column.name, NAME, width=self.cell, lines=1)
            below = canvas.text(x, y, name, NAME, color=canvas.palette.ink)
            below = canvas.text(x, below, [column.times], SMALL, color=canvas.palette.dim)
            canvas.text(x, below, self._prompt(index), SMALL, color=canvas.palette.ink)

    def _draw_label(self, canvas: Canvas, y: int, row: SheetRow) -> None:
        y = canvas.text(MARGIN, y, wrap(row.label, NAME, width=LABEL, lines=2), NAME, color=canvas.palette.ink)
        y = canvas.text(MARGIN, y, wrap(row.folder, SMALL, width=LABEL, lines=2), SMALL, color=canvas.palette.dim)
        if row.score is not None:
            y = canvas.text(
                MARGIN, y + 4, wrap(row.score.text, SMALL, width=LABEL, lines=1), SMALL, color=canvas.palette.ink
            )
            if row.score.rank is not None:
                canvas.badge(MARGIN, y + 4, f"rank {row.score.rank}", RANK, filled=row.score.rank == 1)

    def _draw_cell(self, canvas: Canvas, x: int, y: int, pictures: ShotPictures | None) -> None:
        middle = None if pictures is None else pictures.middle
        canvas.picture(x, y, middle, width=self.cell, height=self.picture, missing=MISSING)
        if pictures is None or self.layout == "storyboard":
            return
        y += self.picture + PAIR_GAP
        for left, picture in ((x, pictures.first), (x + self.cell - self.small, pictures.last)):
            canvas.picture(left, y, picture, width=self.small, height=self.small_height, missing=MISSING)


# The page


def sheet_page(
    rows: Sequence[SheetRow],
    columns: Sequence[SheetColumn],
    *,
    title: str,
    root: Path,
    layout: Layout = "takes",
    limit: int = EMBEDDED_BYTES,
) -> str:
    """One HTML page for the folder ``root``, complete in itself unless its videos are too large to embed.

    Small copies of the videos are embedded if together they have at most ``limit`` bytes; otherwise the page links
    those that are in ``root``, and shows only pictures of the others.
    """
    copies = renditions([(row.video, row.upscale) for row in rows if row.video is not None], limit=limit, crf=CRF)
    sources = _links(rows, root) if copies is None else _embedded(rows, copies)
    pictures = [pictures.middle for row in rows for pictures in row.pictures if pictures is not None]
    width, height = pictures[0].size if pictures else (16, 9)
    return render(
        "sheet.html",
        title=title,
        storyboard=layout == "storyboard",
        columns=[_column(column) for column in columns],
        rows=[_row(row, source) for row, source in zip(rows, sources, strict=True)],
        aspect=f"{width} / {height}",
        pixelated=max(width, height) <= PIXEL_ART,
        missing=MISSING,
        linked=copies is None,
        data={
            "videos": sources,
            "takes": [row.label for row in rows],
            "shots": [
                {"name": c.name, "times": c.times, "prompt": c.prompt, "start": c.start_seconds, "end": c.end_seconds}
                for c in columns
            ],
        },
    )


def _embedded(rows: Sequence[SheetRow], copies: Sequence[bytes]) -> list[str | None]:
    """For each row the rendition of its video as a URL; None without a video."""
    rest = iter(copies)
    return [None if row.video is None else data_url(next(rest), "video/mp4") for row in rows]


def _links(rows: Sequence[SheetRow], root: Path) -> list[str | None]:
    """For each row the URL of its video, relative to ``root``; None for a video elsewhere."""
    base = root.resolve()
    paths = [None if row.video is None else row.video.resolve() for row in rows]
    return [quote(path.relative_to(base).as_posix()) if path and path.is_relative_to(base) else None for path in paths]


def _column(column: SheetColumn) -> dict[str, Any]:
    return {"name": column.name, "times": column.times, "prompt": column.prompt}


def _row(row: SheetRow, source: str | None) -> dict[str, Any]:
    return {
        "label": row.label,
        "folder": row.folder,
        "score": None if row.score is None else row.score.text,
        "rank": None if row.score is None else row.score.rank,
        "plays": source is not None,
        "cells": [
            None
            if pictures is None
            else {
                "middle": _picture_url(pictures.middle),
                "ends": [_picture_url(picture) if picture else None for picture in (pictures.first, pictures.last)],
            }
            for pictures in row.pictures
        ],
    }


def _picture_url(picture: Image.Image) -> str:
    """A picture as a data URL; a tiny one without loss, so that its pixels stay as they are."""
    file = BytesIO()
    tiny = max(picture.size) <= PIXEL_ART
    picture.save(file, format="WEBP", lossless=tiny, quality=75, method=4)
    return data_url(file.getvalue(), "image/webp")
