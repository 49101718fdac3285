"""The report of a benchmark whose numbers are made up: its page, its charts and the small copies of its videos."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from browser import wait_until
from llrag_cli import LlragError
from llrag_cli.evaluation import report
from llrag_cli.evaluation.charts import Curve, line_chart, ticks
from llrag_cli.evaluation.grid import Grid, strategy_variant
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.registry import METRICS, metrics_of, ranked_metrics
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.rendition import rendition, rendition_size, renditions
from llrag_cli.evaluation.report import Run, write_report
from llrag_cli.evaluation.results import compare
from llrag_cli.evaluation.run import Scored
from llrag_cli.files.html import TEMPLATES, render
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.video import VideoWriter, read_video
from runs.records import record_of

BACKEND = Backend("offline: toy", features=lambda frames: frames, flow=None, licences={"toy": "MIT"})
PROMPT = "a room </script><script>alert(1)</script><!-- <script> \u2028 & 'quotes'"
MEMORIES = ("none", "nearest", "successor", "diverse", "uniform")
BLOCKS = (BlockMemory(0, (), ()), BlockMemory(3, (1, 0), (0.9, 0.8)))


def write_video(path: Path, *, frames: int = 24, upscale: int = 4, seed: int = 0, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    picture = F.interpolate(coarse, size=(side, side), mode="bilinear")[0] * 2 - 1
    writer = VideoWriter(path, fps=8, upscale=upscale, crf=12)
    writer.write(torch.stack([picture.roll(number, dims=2) for number in range(frames)]))
    writer.close()
    return path


Make = Callable[[int], tuple[Path, Grid]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A benchmark of so many memories: videos, made-up scores and the report."""
    monkeypatch.setattr(report, "read", lambda folder: Run(folder.video, record_of(), BLOCKS))

    def run(memories: int) -> tuple[Path, Grid]:
        prompts = tuple((number, PROMPT) for number in range(1, 3))
        grid = Grid(("tiny",), tuple(map(strategy_variant, MEMORIES[:memories])), (3.0,), prompts, (0,))
        rng, scored = random.Random(0), []
        videos = [write_video(tmp_path / f"{seed}.mp4", seed=seed) for seed in range(memories)]
        for case in grid.cases():
            target = RunFolder(case.folder(tmp_path)).video
            target.parent.mkdir(parents=True)
            shutil.copy(videos[MEMORIES.index(case.memory)], target)
            gain = 0.1 * MEMORIES.index(case.memory)
            metrics = metrics_of(BACKEND, sprites=True)
            values: dict[str, float | None] = {metric.name: gain + rng.uniform(0.5, 0.55) for metric in metrics}
            names = [metric.series.name for metric in metrics if metric.series is not None]
            per_clip: dict[str, list[float | None]] = {name: [rng.random() for _ in range(15)] for name in names}
            scored.append(Scored(case, 3.0, Scores(24, 15, values, per_clip), BACKEND.name))
        results = compare(scored, baseline="none", ranked=ranked_metrics("offline"))
        write_report(tmp_path, grid, results, scored, backend=BACKEND)
        return tmp_path, grid

    return run


def data_of(page: str) -> dict[str, Any]:
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    content = json.loads(found[0])
    assert isinstance(content, dict)
    return content


def test_the_page_holds_everything_and_trusts_no_prompt(make: Make) -> None:
    root, _ = make(3)
    page = (root / "report.html").read_text(encoding="utf-8")
    data = data_of(page)
    assert page.count("<script") == 3 and "<!--" not in page and "alert(1)</script>" not in page
    assert data["videos"][0]["prompt"] == PROMPT
    assert len(data["videos"]) == 2 and page.count('class="chart"') == 3
    assert all(
        entry["source"].startswith("data:video/mp4;base64,") and entry["thumbnails"].keys() == {"0", "1"}
        for video in data["videos"]
        for entry in video["memories"]
    )
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page and "unsafe" not in page
    assert "none (sliding window)" in page and "average rank" in page and "nearest, minus none" in page
    for name in METRICS:
        assert (METRICS[name].heading in page) == (name not in ("consistency_mapped",) or "mapped" in page)


@pytest.mark.parametrize("memories", [3, 5])
@pytest.mark.parametrize(("width", "height", "scheme"), [(1300, 900, "light"), (390, 844, "dark")])
def test_tables_stay_on_the_page(make: Make, memories: int, width: int, height: int, scheme: Any) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    root, _ = make(memories)
    messages: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto((root / "report.html").as_uri())
        assert page.locator("video").count() == memories
        assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1216px"  # its style is allowed
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        edges = (
            "[...document.querySelectorAll('table')].map(table => table.parentElement.getBoundingClientRect().right)"
        )
        assert max(page.evaluate(edges)) <= width
        seek = "const seek = document.getElementById('seek'); seek.value = 2; seek.dispatchEvent(new Event('input'))"
        page.evaluate(f"() => {{ {seek} }}")  # at once: the page follows the video many times a second
        wait_until(page, "document.querySelectorAll('.retrieved img').length > 0")
        wait_until(page, "[...document.querySelectorAll('.retrieved img')].every(image => image.naturalWidth)")
        browser.close()
    assert not messages


def test_videos_are_linked_beyond_the_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "EMBEDDED_BYTES", 1000)
    root, _ = make(2)
    page = (root / "report.html").read_text(encoding="utf-8")
    sources = [entry["source"] for video in data_of(page)["videos"] for entry in video["memories"]]
    assert sources[0] == "videos/tiny/none/001-seed0/video.mp4"
    assert all((root / source).exists() for source in sources)
    assert "media-src data: 'self' file:" in page


# --- small copies of videos


@pytest.mark.parametrize(
    ("size", "upscale", "small"),
    [
        ((256, 256), 4, (64, 64)),  # as large as before it was enlarged
        ((832, 480), 1, (256, 148)),
        ((480, 832), 1, (148, 256)),
        ((100, 50), 1, (100, 50)),
        ((4096, 4096), 2, (256, 256)),
        ((9, 1000), 1, (2, 256)),
    ],
)
def test_sizes_of_renditions(size: tuple[int, int], upscale: int, small: tuple[int, int]) -> None:
    assert rendition_size(*size, upscale=upscale) == small


def test_a_rendition_shows_the_same_in_fewer_bytes(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", frames=40)
    copy = rendition(video, upscale=4)
    assert len(copy) < video.stat().st_size / 4
    (tmp_path / "small.mp4").write_bytes(copy)
    small, whole = read_video(tmp_path / "small.mp4"), read_video(video)
    assert small.shape == (40, 3, 64, 64)
    assert (F.avg_pool2d(whole, 4) - small).abs().mean() < 0.03


def test_a_rendition_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("llrag_cli.files.ffmpeg.ffmpeg", lambda: "false")
    with pytest.raises(LlragError, match=r"no small copy of `.*a\.mp4` could be made for the report: ffmpeg stopped"):
        rendition(video)


def test_renditions_stop_at_the_limit(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    one = len(rendition(video))
    assert renditions([(video, 1)] * 2, limit=2 * one) is not None
    assert renditions([(video, 1)] * 2, limit=2 * one - 1) is None


# --- charts and pages


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 30, count=6) == [0, 5, 10, 15, 20, 25, 30]
    assert ticks(0.113, 0.187) == pytest.approx([0.12, 0.14, 0.16, 0.18])
    assert ticks(2, 2) == [2]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_flat_curve_is_drawn(value: float) -> None:
    chart = line_chart("flat", [Curve("a", [1.0, 3.0], [value] * 2, [value] * 2, [value] * 2)])
    (line,) = chart.lines
    assert len({dot.y for dot in line.dots}) == 1 and line.dots[1].x == chart.right
    assert chart.top < line.dots[0].y < chart.bottom and chart.y_ticks


def test_curves_stay_inside_the_axes_and_higher_is_up() -> None:
    chart = line_chart(
        "two", [Curve("a", [1, 2], [1, 9], [0, 8], [2, 10]), Curve("b", [1, 2], [5, -3], [5, 5], [5, 5])]
    )
    for line in chart.lines:
        for point in [*line.path.split(), *line.band.split()]:
            x, y = map(float, point.split(","))
            assert chart.left <= x <= chart.right and chart.top <= y <= chart.bottom
    low, high = chart.lines[0].dots
    assert high.y < low.y and chart.lines[0].color != chart.lines[1].color


def test_every_page_has_one_base_and_allows_no_network() -> None:
    pages = [file for file in TEMPLATES.glob("*.html") if file.name not in ("base.html", "parts.html", "http.html")]
    # `http.html` is not a file of a result: it lists the requests of the server, under the server's own policy
    assert {page.name for page in pages} == {"report.html", "memory.html", "training.html", "sheet.html", "demo.html"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith('{% extends "base.html" %}') and "http" not in text and "|safe" not in text
    html = render("training.html", name="<b>", rows=[("a", "</td>")], settings=[("b", "1 & 2")], picture="data:,")
    assert "<b>" not in html and "&lt;/td&gt;" in html and "1 &amp; 2" in html
    assert "Content-Security-Policy" in html and "script-src" not in html
