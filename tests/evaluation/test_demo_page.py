"""The demo: its sentence says what was measured, and its page plays two videos in step."""

from __future__ import annotations

import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from browser import wait_until
from llrag_cli.evaluation.demo import Return, Sight, compared, find_return, known_objects, measure, sentence, sight
from llrag_cli.evaluation.demo_page import Demo, demo_page, page_data, still
from llrag_cli.evaluation.leave_return.judge import Look
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.video import VideoWriter
from llrag_cli.scenes.timeline import ShotSpan, Timeline
from llrag_cli.world.checker import Seen
from runs.records import record_of

PROMPT = "two shapes </script><script>alert(1)</script><!-- & 'quotes'\" {{ 7 * 7 }}"


def shot(name: str, start: int, **changes: Any) -> ShotSpan:
    kind = "cut" if start else "start"
    content = {"name": name, "prompt": f"{PROMPT} {name}", "start": start, "stop": start + 2, "kind": kind}
    return ShotSpan.model_validate({**content, "remember": "all", "sink": name, **changes})


def timeline_of(*, remember: Any = ("arrival",)) -> Timeline:
    """Three shots of two blocks at 8 frames a second; the last one begins at 5.6 s."""
    shots = (shot("arrival", 0), shot("elsewhere", 2, remember="none"), shot("return", 4, remember=remember))
    return Timeline(frames_per_block=3, fps=8, shots=shots)


def log_of(*retrieved: tuple[int, ...]) -> tuple[BlockMemory, ...]:
    """A memory log of six blocks, the last of which retrieved frames."""
    rows = ((),) * (6 - len(retrieved)) + retrieved
    return tuple(
        BlockMemory(3 * number, frames, tuple(0.9 - 0.1 * place for place in range(len(frames))))
        for number, frames in enumerate(rows)
    )


# --- what is measured ------------------------------------------------------------------------------------


def test_the_return_is_the_one_that_the_scene_names() -> None:
    timeline = timeline_of()
    found = find_return(timeline, log_of((1, 2), (1, 2, 4, 12)))
    assert found is not None
    assert (found.shot.name, found.place.name, found.named) == ("return", "arrival", True)
    unnamed = find_return(timeline_of(remember="all"), log_of((7, 8), (1, 7, 8, 12)))
    assert unnamed is not None and (unnamed.place.name, unnamed.named) == ("elsewhere", False)
    assert find_return(timeline, log_of((12,), (13, 14))) is None  # of its own frames
    assert find_return(timeline, log_of()) is None


def test_a_switch_is_no_return() -> None:
    shots = (shot("arrival", 0), shot("on", 2, kind="switch", sink="arrival"))
    timeline = Timeline(frames_per_block=3, fps=8, shots=shots)
    assert find_return(timeline, (BlockMemory(0), BlockMemory(9, (1,), (0.5,)))) is None


def look(wall: str, *objects: tuple[str, str | None]) -> Look:
    return Look(wall, tuple(Seen(color, shape, 200) for color, shape in objects))


PLACE = [look("blue", ("red", "circle"), ("green", "square"))] * 7 + [look("blue", ("black", None))]


def test_a_place_is_known_from_its_own_frames() -> None:
    assert known_objects(PLACE) == {"red": "circle", "green": "square"}  # black flickers
    assert known_objects([look("blue", ("red", None))] * 4) == {"red": None}
    seen = sight(PLACE, [look("blue", ("red", "circle"))] * 3 + [look("gray", ("red", "cross"), ("green", "square"))])
    assert seen == Sight("blue", ("red", "green"), wall=0.75, color=0.625, shape=pytest.approx(0.5))
    assert sight([look("pink")] * 4, [look("pink"), look("gray")]) == Sight("pink", (), 0.5, None, None)
    unknown = sight([look("pink", ("red", None))] * 4, [look("pink", ("red", "circle"))])
    assert (unknown.color, unknown.shape) == (1.0, None)


def seen_with(wall: float, color: float | None, *, wall_color: str = "blue", objects: tuple[str, ...] = ()) -> Sight:
    return Sight(wall_color, objects or ("red", "green"), wall, color, None)


@pytest.mark.parametrize(
    ("native", "memory", "kind"),
    [
        (seen_with(0.0, 0.1), seen_with(0.95, 0.9), "better"),
        (seen_with(1.0, 0.1), seen_with(1.0, 0.9), "better"),
        (seen_with(0.9, 0.5), seen_with(0.95, 0.45), "same"),
        (seen_with(0.0, 0.0), seen_with(0.0, 0.0), "same"),
        (seen_with(0.5, 0.5), seen_with(0.6, 0.5), "better"),
        (seen_with(0.9, 0.9), seen_with(0.1, 0.9), "worse"),
        (seen_with(0.0, 0.9), seen_with(0.9, 0.1), "mixed"),
        (seen_with(0.0, None), seen_with(0.9, None), "better"),
        (seen_with(0.0, None), seen_with(0.0, 1.0), "same"),  # objects in one of the places only
    ],
)
def test_two_videos_are_compared(native: Sight, memory: Sight, kind: str) -> None:
    assert compared(native, memory) == kind


def test_the_sentence_says_what_was_measured() -> None:
    timeline = timeline_of()
    first, _, last = timeline.shots
    found = Return(last.model_copy(update={"prompt": "two shapes"}), first, named=True)
    wins = sentence(timeline, found, seen_with(0.0, 0.12), seen_with(0.95, 0.88))
    assert wins == (
        "At 0:05 the scene returns to “arrival” under the prompt “two shapes”: with memory its blue wall is seen in "
        "95 % of the frames and the red and green of its objects in 88 %, without memory in 0 % and 12 %."
    )
    equal = sentence(timeline, found, seen_with(1.0, 0.9), seen_with(1.0, 0.9))
    assert equal.endswith(
        "; memory made no difference that could be measured: with memory its blue wall is seen in 100 % of the frames "
        "and the red and green of its objects in 90 %, without memory in 100 % and 90 %."
    )
    assert "; memory did not help: " in sentence(timeline, found, seen_with(0.9, 0.9), seen_with(0.1, 0.9))
    assert "; the result is mixed: " in sentence(timeline, found, seen_with(0.0, 0.9), seen_with(0.9, 0.1))
    other = sentence(timeline, found, seen_with(0, None, wall_color="gray"), seen_with(1, None))
    assert other.endswith(": with memory its wall is seen in 100 % of the frames, without memory in 0 %.")
    three = seen_with(0.5, 0.5, objects=("red", "blue", "white"))
    assert "the red, blue and white of its objects" in sentence(timeline, found, three, three)
    assert "the colours of its objects" in sentence(timeline, found, three, seen_with(0.5, 0.5))


def test_the_sentence_says_so_if_nothing_was_measured() -> None:
    timeline = timeline_of(remember="all")
    first, _, last = timeline.shots
    assert "no return was measured" in sentence(timeline, None, None, None)
    found = Return(last.model_copy(update={"prompt": "a " * 80}), first, named=False)
    text = sentence(timeline, found, None, None)
    assert (
        text.startswith("At 0:05 the scene cuts to “a a ") and "for which memory retrieved frames of “arrival”" in text
    )
    assert "…”" in text and text.endswith(
        "nothing was measured, because walls and objects are only known of the embedded model."
    )


# --- the page --------------------------------------------------------------------------------------------


def write_levels(path: Path, frames: int) -> Path:
    """A video whose frame n is gray, 3n + 10 of 255."""
    path.parent.mkdir(parents=True)
    levels = (3.0 * torch.arange(frames) + 10) / 127.5 - 1
    writer = VideoWriter(path, fps=8, upscale=4, crf=8)
    writer.write(levels[:, None, None, None].expand(-1, 3, 16, 16))
    writer.close()
    return path


def demo_in(root: Path) -> Demo:
    timeline = timeline_of()
    lengths = {"timeline": timeline, "latent_frames": 18, "video_frames": 69, "title": "There and back"}
    records = record_of("none", **lengths), record_of("nearest", **lengths)
    folders = RunFolder(root / "native"), RunFolder(root / "memory")
    for folder in folders:
        write_levels(folder.video, 69)
    blocks = log_of((2, 1), (4, 2, 12))
    found = find_return(timeline, blocks)
    sights = seen_with(0.0, 0.1), seen_with(0.95, 0.9)
    return Demo(root, "There & <b>back</b>", *folders, records, blocks, found, sights)


def test_frames_of_the_place_and_of_the_return_are_measured(tmp_path: Path) -> None:
    demo = demo_in(tmp_path)
    assert demo.found is not None
    threads = torch.get_num_threads()
    seen = measure(demo.native.video, demo.timeline, demo.found)
    assert torch.get_num_threads() == threads
    assert 0 <= seen.wall <= 1 and (seen.color is None) == (not seen.object_colors)


def test_the_page_holds_everything_and_trusts_no_prompt(tmp_path: Path) -> None:
    demo = demo_in(tmp_path / "demo #1")
    page = demo_page(demo)
    assert page.count("<script") == 3 and "<!--" not in page and "alert(1)</script>" not in page
    assert "<b>back</b>" not in page and not re.findall(r'(?:src|href)="(?!data:)', page)
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    data = json.loads(found[0])
    assert all(source.startswith("data:video/mp4;base64,") for source in data["sources"])
    assert [(each["name"], each["start"]) for each in data["shots"]] == [
        ("arrival", 0), ("elsewhere", 21 / 8), ("return", 45 / 8)
    ]  # fmt: skip
    assert data["shots"][2]["prompt"] == f"{PROMPT} return"
    assert [each["start"] for each in data["blocks"]] == [0, 9 / 8, 21 / 8, 33 / 8, 45 / 8, 57 / 8]
    retrieved = [[(frame["frame"], frame["source"]) for frame in block["retrieved"]] for block in data["blocks"]]
    assert retrieved == [
        [],
        [],
        [],
        [],
        [(2, "arrival"), (1, "arrival")],
        [(4, "arrival"), (2, "arrival"), (12, "return")],
    ]
    assert data["thumbnails"].keys() == {"1", "2", "4", "12"}
    assert "95 % of the frames" in page and "colours of its objects" in page and "default-src 'none'" in page


def test_large_videos_are_linked(tmp_path: Path) -> None:
    page = demo_page(demo_in(tmp_path / "demo"), limit=100)
    assert '"sources":["native/video.mp4","memory/video.mp4"]' in page and "media-src data: 'self' file:" in page


def test_a_scene_without_a_return_has_a_page(tmp_path: Path) -> None:
    demo = demo_in(tmp_path)
    plain = Demo(demo.root, "", demo.native, demo.memory, demo.records, log_of(), None, None)
    page = demo_page(plain)
    assert "compare by eye" in page and 'id="look"' not in page and "What was measured" not in page
    assert page_data(plain, [])["thumbnails"] == {}


def test_the_still_picture_has_both_videos(tmp_path: Path) -> None:
    picture = Image.open(BytesIO(still(demo_in(tmp_path))))
    assert picture.width > picture.height / 2 and picture.format == "PNG"


LEVELS = """() => videos.map(video => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 8;
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0, 8, 8);
  return context.getImageData(4, 4, 1, 1).data[0];
})"""
AT_REST = "videos.every(video => !video.seeking && video.readyState >= 2)"


@pytest.mark.parametrize("limit", [2**26, 100])
@pytest.mark.parametrize(("width", "height", "scheme"), [(1300, 900, "light"), (390, 844, "dark")])
def test_both_videos_stay_in_step(tmp_path: Path, limit: int, width: int, height: int, scheme: Any) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    demo = demo_in(tmp_path / "demo")
    demo.page.write_text(demo_page(demo, limit=limit), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(demo.page.as_uri())
        wait_until(page, AT_REST)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for frame in (0, 30, 29, 68, 3, 50):  # there and back
            page.evaluate(f"$('seek').value = {frame} / 8; $('seek').dispatchEvent(new Event('input'))")
            wait_until(page, AT_REST)
            first, second = page.evaluate("videos.map(video => video.currentTime)")
            assert first == second == pytest.approx((frame + 0.5) / 8, abs=1e-3)
            if limit > 100:  # a page may not read the pixels of other files
                assert page.evaluate(LEVELS) == [pytest.approx(3 * frame + 10, abs=1.4)] * 2
        assert page.inner_text("#now").startswith("return")
        assert page.inner_text("#clock") == "0:06.3 / 0:08.6"
        assert page.locator("#retrieved img").count() == 2
        wait_until(page, "[...document.querySelectorAll('#retrieved img')].every(image => image.naturalWidth)")
        page.click("#shots button >> nth=1")
        wait_until(page, AT_REST)
        assert page.evaluate("videos.map(video => video.currentTime)") == [pytest.approx(21.5 / 8, abs=1e-3)] * 2
        assert page.inner_text("#now").startswith("elsewhere")
        assert "No frames were retrieved" in page.inner_text("#retrieved")
        page.click("#look")
        wait_until(page, "videos.every(video => !video.paused && video.currentTime > 6)")
        times = [page.evaluate("videos.map(video => video.currentTime)") for _ in range(10)]
        assert max(abs(first - second) for first, second in times) < 1 / 8
        page.click("#play")
        wait_until(page, f"videos.every(video => video.paused) && {AT_REST}")
        wait_until(page, "videos[0].currentTime === videos[1].currentTime")
        assert problems == []
        browser.close()


def test_the_preset_of_the_demo_judges_sprites() -> None:
    from llrag_cli.models.family import family_of
    from llrag_cli.scenes.example import demo_scene

    assert family_of(load_config(demo_scene().backbone or "tiny")).shows_sprites
