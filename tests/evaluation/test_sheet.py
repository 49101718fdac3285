"""Contact sheets: the right frames, pictures without overlaps, and a page that is complete in itself and plays."""

from __future__ import annotations

import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from browser import wait_until
from llrag_cli.evaluation import sheet
from llrag_cli.evaluation.canvas import Style, resized, wrap
from llrag_cli.evaluation.sheet import (
    Layout,
    Score,
    SheetColumn,
    SheetRow,
    ShotPictures,
    contact_sheet,
    sheet_columns,
    sheet_page,
    shot_pictures,
)
from llrag_cli.runs.video import VideoWriter
from llrag_cli.scenes.timeline import ShotSpan, Timeline

HOSTILE = "a room </script><script>alert(1)</script><!-- & 'quotes'\" {{ 7 * 7 }}"


def timeline_of(shots: int) -> Timeline:
    """Shots of two blocks, 8 frames per second."""
    spans = [
        ShotSpan(
            name=f"shot {number}",
            prompt=f"{HOSTILE} {number}",
            start=2 * number,
            stop=2 * number + 2,
            kind="cut" if number else "start",
            remember="all",
            sink="shot 0",
        )
        for number in range(shots)
    ]
    return Timeline(frames_per_block=3, fps=8, shots=tuple(spans))


def write_levels(path: Path, frames: int, *, upscale: int = 4) -> Path:
    """A video whose frame n is gray, 4n + 10 of 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (4.0 * torch.arange(frames) + 10) / 127.5 - 1
    writer = VideoWriter(path, fps=8, upscale=upscale, crf=8)
    writer.write(levels[:, None, None, None].expand(-1, 3, 16, 16))
    writer.close()
    return path


def frame_of(picture: Image.Image | None) -> int | None:
    return None if picture is None else round((float(np.asarray(picture).mean()) - 10) / 4)


@pytest.mark.parametrize("written", [45, 40, 30, 22])
def test_pictures_are_the_middle_first_and_last_frame(tmp_path: Path, written: int) -> None:
    timeline = timeline_of(2)  # frames 0-20 and 21-44
    video = write_levels(tmp_path / "video.mp4", written)
    first, second = shot_pictures(video, timeline, upscale=4)
    assert first is not None and first.middle.size == (16, 16)
    assert [frame_of(picture) for picture in (first.middle, first.first, first.last)] == [10, 0, 20]
    if written > 33:
        assert second is not None
        last = 44 if written == 45 else None
        assert [frame_of(picture) for picture in (second.middle, second.first, second.last)] == [33, 21, last]
    else:
        assert second is None
    board = shot_pictures(video, timeline, layout="storyboard")
    assert board[0] is not None and board[0].middle.size == (64, 64)
    assert (board[0].first, board[0].last) == (None, None)
    assert sheet_columns(timeline)[1] == SheetColumn("shot 1", 21 / 8, 45 / 8, f"{HOSTILE} 1")


def colors(index: int) -> tuple[int, int, int]:
    """Different for each index below 1000, and none of a palette's."""
    return 40 + 17 * (index % 10), 90 + 15 * (index // 10 % 10), 60 + 18 * (index // 100)


def plain(takes: int, shots: int, size: tuple[int, int], *, ends: bool = True) -> tuple[list[SheetRow], list[Any]]:
    """Takes whose pictures are of one colour each."""
    rows = []
    for take in range(takes):
        numbers = [3 * (take * shots + shot) for shot in range(shots)]
        pictures = [
            [Image.new("RGB", size, colors(number + part)) for part in range(3 if ends else 1)] for number in numbers
        ]
        label = f"take {take + 1} · seed {take + 7}"
        score = Score("drift", 0.03125 * take, rank=take + 1) if take else None
        rows.append(
            SheetRow(label, tuple(ShotPictures(*p) for p in pictures), folder="runs/" + "long-" * 9, score=score)
        )
    columns = [
        SheetColumn(f"shot {i} of a long name", 10.0 * i, 10.0 * i + 10, "very long prompt " * 20) for i in range(shots)
    ]
    return rows, columns


def areas(png: bytes) -> dict[tuple[int, ...], int]:
    """How many pixels each colour has."""
    image = Image.open(BytesIO(png)).convert("RGB")
    found = image.getcolors(image.width * image.height)
    assert found is not None
    return {color: count for count, color in found}  # type: ignore[misc]


@pytest.mark.parametrize("takes", [1, 2, 8])
@pytest.mark.parametrize("shots", [1, 2, 7, 30])
@pytest.mark.parametrize("size", [(64, 64), (416, 240)])
def test_nothing_overlaps(takes: int, shots: int, size: tuple[int, int]) -> None:
    rows, columns = plain(takes, shots, size)
    png = contact_sheet(rows, columns, title="The orchid house " * 9)
    image, found = Image.open(BytesIO(png)), areas(png)
    assert image.width <= sheet.WIDEST
    numbers = range(3 * takes * shots)
    assert {found[colors(number)] for number in numbers[::3]} == {found[colors(0)]}  # each picture is whole
    small = {found[colors(number)] for number in numbers if number % 3}
    assert len(small) == 1 and 0.15 < small.pop() / found[colors(0)] < 0.26
    assert found[colors(0)] >= 128 * 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("shots", [1, 7, 30])
def test_a_storyboard_has_one_picture_a_shot(shots: int, scheme: Any) -> None:
    rows, columns = plain(1, shots, (64, 64), ends=False)
    png = contact_sheet(rows, columns, layout="storyboard", scheme=scheme)
    found = areas(png)
    assert {found[colors(3 * shot)] for shot in range(shots)} == {found[colors(0)]}
    height = Image.open(BytesIO(png)).height
    assert height > found[colors(0)] ** 0.5 + 100  # captions are beneath


def test_shots_that_were_not_generated_are_empty_boxes() -> None:
    rows, columns = plain(1, 2, (64, 64))
    whole, _ = rows[0].pictures
    png = contact_sheet([SheetRow("take 1", (whole, None))], columns)
    assert Image.open(BytesIO(png)).size == Image.open(BytesIO(contact_sheet(rows, columns))).size
    nothing = contact_sheet([SheetRow("take 1", (None, None))], columns)
    assert (246, 247, 249) in areas(nothing)


def test_text_is_wrapped_and_ellipsised() -> None:
    style = Style(12, 16)
    for text in ("she bends over an orchid", "x" * 300, "雨" * 90, "", "a  b\nc", "long " * 90):
        for lines in (1, 3):
            wrapped = wrap(text, style, width=120, lines=lines)
            assert len(wrapped) <= lines
            assert all(style.font.getlength(line) <= 120 for line in wrapped)
            whole = "".join("".join(wrapped).split()) == "".join(text.split())
            assert whole or wrapped[-1].endswith("…")
    assert wrap("a  b\nc", style, width=120, lines=1) == ["a b c"]


def test_tiny_pictures_grow_without_smoothing_and_large_ones_are_averaged() -> None:
    checks = Image.fromarray((np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert len(resized(checks, 32, 32).getcolors() or []) == 2
    assert (np.asarray(resized(checks, 4, 4)) == 128).all()


def takes_in(
    root: Path, *, shots: int = 2, takes: int = 2, layout: Layout = "takes"
) -> tuple[list[SheetRow], list[Any]]:
    timeline, rows = timeline_of(shots), []
    for take in range(takes):
        video = write_levels(root / f"take {take}#/video.mp4", timeline.video_frames)
        pictures = shot_pictures(video, timeline, upscale=4, layout=layout)
        label = f"take {take} {HOSTILE}" if layout == "takes" else ""
        rows.append(
            SheetRow(label, pictures, folder="runs/a/b", score=Score("drift", 0.5, take + 1), video=video, upscale=4)
        )
    return rows, sheet_columns(timeline)


def test_the_page_is_complete_in_itself_and_trusts_no_text(tmp_path: Path) -> None:
    rows, columns = takes_in(tmp_path)
    page = sheet_page(rows, columns, title=HOSTILE, root=tmp_path)
    assert page.count("<script") == 2 and "<!--" not in page and "alert(1)</script>" not in page and ">49" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count('"data:video/mp4;base64,') == 2
    assert "'self'" not in page and "file:" not in page
    pictures_only = sheet_page([SheetRow("take", rows[0].pictures)], columns, title="a", root=tmp_path)
    assert "button class" not in pictures_only and "Point at a picture" not in pictures_only
    part = SheetRow("take", (rows[0].pictures[0], None))
    assert "not generated" in sheet_page([part], columns, title="a", root=tmp_path)


def test_large_videos_are_linked(tmp_path: Path) -> None:
    rows, columns = takes_in(tmp_path / "scene")
    page = sheet_page(rows, columns, title="a", root=tmp_path / "scene", limit=100)
    assert '"videos":["take%200%23/video.mp4","take%201%23/video.mp4"]' in page
    assert "media-src data: 'self' file:" in page
    elsewhere = sheet_page(rows, columns, title="a", root=tmp_path / "other", limit=100)
    assert '"videos":[null,null]' in elsewhere and "button class" not in elsewhere


@pytest.mark.parametrize("limit", [2**20, 100])
@pytest.mark.parametrize("layout", ["takes", "storyboard"])
@pytest.mark.parametrize(("width", "height", "scheme"), [(1300, 900, "light"), (390, 844, "dark")])
def test_the_page_fits_and_plays(
    tmp_path: Path, limit: int, layout: Layout, width: int, height: int, scheme: Any
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    rows, columns = takes_in(tmp_path, shots=9, takes=2 if layout == "takes" else 1, layout=layout)
    path = tmp_path / "sheet.html"
    path.write_text(
        sheet_page(rows, columns, title="a" * 80, root=tmp_path, layout=layout, limit=limit), encoding="utf-8"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.hover("button.frame >> nth=1")
        wait_until(page, "document.querySelector('button.frame.playing video') !== null")
        start, end = columns[1].start_seconds, columns[1].end_seconds
        time = page.evaluate("document.querySelector('button.frame.playing video').currentTime")
        assert start <= time <= end + 0.2
        page.click("button.frame >> nth=1")
        wait_until(page, "dialog.open && player.currentTime > 0")
        assert page.evaluate("player.currentTime") >= start
        assert page.inner_text("#playing").startswith("shot 1")
        page.click("dialog button")
        assert not page.evaluate("dialog.open")
        assert problems == []
        browser.close()
