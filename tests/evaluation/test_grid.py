"""The benchmark end to end on a tiny grid, and what it makes of known figures."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from conftest import Llrag
from llrag_cli import LlragError
from llrag_cli.evaluation import report
from llrag_cli.evaluation.grid import Cell, Grid, method_config, subset
from llrag_cli.evaluation.metrics.score import RANKED_OFFLINE
from llrag_cli.evaluation.results import FIGURES, compare, verdict
from llrag_cli.evaluation.run import Scored

GRID = ("bench", "--out", "b", "--count", "2", "--horizon", "9", "--horizon", "4", "--set", "sampler.steps=[1000, 500]")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark, made once."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "llrag_cli", *GRID]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny, 9 s, 2 prompts, 2 videos of each method" in done.stdout
    assert done.stdout.endswith("b/results.json\nb/results.csv\nb/report.html\n")
    return folder / "b"


@pytest.fixture
def bench(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil, in the folder that ``llrag`` is called in."""
    return Path(shutil.copytree(made, tmp_path / "b"))


def test_everything_is_there(made: Path) -> None:
    told = json.loads((made / "results.json").read_text())
    assert (told["schema"], told["baseline"]) == (1, "native")
    assert [(result["backbone"], result["seconds"], result["videos"]) for result in told["results"]] == [
        ("tiny", 4, 2),
        ("tiny", 9, 2),
    ]
    for result in told["results"]:
        native, retrieval = result["methods"]["native"], result["methods"]["retrieval"]
        assert native["average_rank"] + retrieval["average_rank"] == pytest.approx(3)
        for name, found in retrieval["differences"].items():
            gap = retrieval["means"][name] - native["means"][name]
            assert found["low"] - 1e-6 <= found["mean"] <= found["high"] + 1e-6
            if name in result["ranked_by"]:
                assert found["mean"] == pytest.approx(gap, abs=1e-6)
    rows = list(csv.DictReader((made / "results.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert {row["method"] for row in rows} == {"native", "retrieval"}
    assert {video["figures"]["frames"] for video in told["videos"]} == {33, 81}  # a shorter horizon is the beginning


def test_the_page_holds_all_it_needs(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[0])
    assert len(data["videos"]) == 2 and len(data["plots"]) == 3
    assert all(
        entry["source"].startswith("data:video/mp4;base64,") for video in data["videos"] for entry in video["methods"]
    )
    own = (Path(report.__file__).with_suffix(".html")).read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', own) and "http" not in own
    recalls = [
        entry["recalls"] for video in data["videos"] for entry in video["methods"] if entry["method"] == "retrieval"
    ]
    assert all(recalls)


@pytest.mark.parametrize(("width", "height", "scheme"), [(1200, 900, "light"), (390, 844, "dark")])
def test_the_page_works_in_a_browser(made: Path, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here to load the page in")
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((made / "report.html").as_uri())
        assert page.locator(".js-plotly-plot").count() >= 3
        assert page.locator("video").count() == 2
        assert "average rank" in page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#play").focus()
        page.keyboard.press("Enter")  # no mouse is needed
        times = "[...document.querySelectorAll('video')].map(video => video.currentTime)"
        page.wait_for_function(f"{times}.every(time => time > 1)")
        gaps = []
        for _ in range(15):
            one, other = page.evaluate(times)
            gaps.append(abs(one - other))
            page.wait_for_timeout(100)
        assert sorted(gaps)[12] < 0.1, gaps  # a busy machine may stop one of them for a moment
        seek = "const to = document.getElementById('seek'); to.value = 3; to.dispatchEvent(new Event('input'))"
        page.evaluate(f"() => {{ document.querySelectorAll('video').forEach(video => video.pause()); {seek} }}")
        page.wait_for_function(f"{times}.every(time => Math.abs(time - 3) < 0.1)")
        browser.close()
    assert not said


def test_done_again_nothing_is_made(llrag: Llrag, bench: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in bench.rglob("video.mp4")}
    done = llrag(*GRID, "--json")
    assert done.returncode == 0, done.stderr
    assert "4 videos of 9 s: 0 to make, 4 here; in b" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in bench.rglob("video.mp4")} == before
    assert json.loads(done.stdout)["results"] == json.loads((bench / "results.json").read_text())["results"]


def test_a_shorter_horizon_uses_what_is_there_and_a_longer_one_does_not(llrag: Llrag, bench: Path) -> None:
    shorter = llrag(*GRID[:5], "--horizon", "4", *GRID[9:], "--dry-run")
    assert "0 to make, 4 here" in shorter.stderr, shorter.stderr
    longer = llrag(*GRID[:5], "--horizon", "20", *GRID[9:], "--dry-run", "--json")
    assert "4 to make, 0 here" in longer.stderr
    assert json.loads(longer.stdout)[0]["seconds_of_video"] == 80


def test_half_made_and_other_videos_are_made_anew(llrag: Llrag, bench: Path) -> None:
    runs = sorted(bench.glob("videos/tiny/*/*"))
    record = json.loads((runs[0] / "run.json").read_text())
    (runs[0] / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    (runs[1] / "run.json").write_text("{half")
    (runs[2] / "video.mp4").unlink()
    assert "3 to make, 1 here" in llrag(*GRID, "--dry-run").stderr
    plan = json.loads(llrag(*GRID, "--dry-run", "--json").stdout)
    assert plan[0]["videos"] == 3 and plan[0]["seconds_of_work"] > 0 and plan[0]["bytes"] > 0
    assert "4 to make" in llrag(*GRID[:-1], "sampler.steps=[1000]", "--dry-run").stderr


def test_an_engine_makes_and_scores_the_same(llrag: Llrag, made: Path, bench: Path) -> None:
    whole, unscored, gone = sorted(path.parent for path in bench.glob("videos/tiny/*/*/video.mp4"))[:3]
    (unscored / "scores-offline.json").unlink()
    shutil.rmtree(gone)
    kept = (whole / "run.json").stat().st_mtime_ns
    done = llrag(*GRID, "--engine", "local:2")
    assert done.returncode == 0, done.stderr
    assert "1 to make, 3 here" in done.stderr and "2/2 done" in done.stderr
    assert (whole / "run.json").stat().st_mtime_ns == kept
    for run in (unscored, gone):
        for name in ("video.mp4", "latents.safetensors", "scores-offline.json"):
            assert (run / name).read_bytes() == (made / run.relative_to(bench) / name).read_bytes()
    assert json.loads((bench / "results.json").read_text()) == json.loads((made / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "slurm"], "unknown engine `slurm`"),
        (["--backbone", "tinny"], "there is no preset `tinny`"),
        (["--method", "nativ"], "there is no method `nativ`"),
        (["--horizon", "0"], "a horizon is not more than 0 seconds"),
        (["--seeds", "0"], "a grid needs a prompt and a seed"),
        (["--backbone", "longlive"], "the real backbones need prompts"),
        (["--prompts", "no.txt"], "no prompt file `no.txt`"),
        (["--set", "memory.sinks=2"], "no setting `memory.sinks`"),
    ],
)
def test_bad_requests_get_a_sentence(llrag: Llrag, arguments: list[str], said: str) -> None:
    done = llrag("bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "hint: " in done.stderr
    assert not Path("bench").exists()


def test_methods_differ_in_memory_only() -> None:
    native, random = method_config("tiny", "native"), method_config("tiny", "random", ["memory.guard=1"])
    assert random.memory.recall == "random" and random.memory.guard == 1
    assert native.sampler == random.sampler and native.backbone == random.backbone
    assert native.memory.window == random.memory.window  # equal context
    assert method_config("tiny", "native", ["memory.guard=1"]) == native


def test_a_share_of_prompts_keeps_its_numbers() -> None:
    prompts = [f"prompt {number}" for number in range(1, 41)]
    drawn = subset(prompts, count=5, seed=3)
    assert len(drawn) == 5 and drawn == subset(prompts, count=5, seed=3) != subset(prompts, count=5, seed=4)
    assert all(text == f"prompt {number}" for number, text in drawn)
    assert len(subset(prompts, count=None, seed=0)) == len(subset(prompts, count=99, seed=0)) == 40


def figures(**known: float) -> dict[str, Any]:
    return {figure.name: known.get(figure.name) for figure in FIGURES}


def scored(method: str, values: list[float | None], name: str = "first_to_last") -> list[Scored]:
    ranked = dict.fromkeys(RANKED_OFFLINE, 0.5)
    found = []
    for number, value in enumerate(values, start=1):
        extra = {} if value is None else {name: value}
        found.append(Scored(Cell("tiny", method, number, "a", 0), 30.0, figures(**ranked, **extra)))
    return found


def test_a_sure_gain_is_said_and_chance_is_not() -> None:
    base = [0.5 + 0.01 * number for number in range(12)]
    sure = [value + 0.1 + 0.01 * (-1) ** number for number, value in enumerate(base)]
    chance = [value + 0.1 * (-1) ** number for number, value in enumerate(base)]
    (result,) = compare(
        scored("native", base) + scored("a", sure) + scored("b", chance), baseline="native", ranked=RANKED_OFFLINE
    )
    assert result["methods"]["a"]["differences"]["first_to_last"]["wins"] == 1
    assert result["methods"]["b"]["differences"]["first_to_last"]["wins"] == 0.5
    said = verdict(result, baseline="native")
    assert "a is better in first to last +0.1000" in said
    assert "b cannot be told from native" in said
    assert {entry["average_rank"] for entry in result["methods"].values()} == {2}


def test_less_is_better_where_it_is() -> None:
    base = [1.0 + 0.01 * number for number in range(8)]
    noisy = [value + 0.5 + 0.01 * (number % 3) for number, value in enumerate(base)]
    both = scored("native", base, "chroma_noise_growth") + scored("a", noisy, "chroma_noise_growth")
    (result,) = compare(both, baseline="native", ranked=RANKED_OFFLINE)
    assert "worse in chroma noise +0.5" in verdict(result, baseline="native")
    assert result["methods"]["a"]["differences"]["chroma_noise_growth"]["wins"] == 0


def test_too_few_prompts_are_too_few() -> None:
    (result,) = compare(
        scored("native", [0.1, 0.2]) + scored("a", [0.5, 0.6]), baseline="native", ranked=RANKED_OFFLINE
    )
    assert verdict(result, baseline="native").endswith("fewer than 5 prompts, too few to be sure of anything")


def test_only_what_every_method_has_is_compared() -> None:
    (result,) = compare(
        scored("native", [0.1, 0.2, 0.3]) + scored("a", [0.1]), baseline="native", ranked=RANKED_OFFLINE
    )
    assert result["videos"] == 1


def test_a_missing_dimension_is_not_ranked() -> None:
    one, other = scored("native", [0.5]), scored("a", [0.5])
    blind = [Scored(each.cell, each.seconds, {**each.figures, "motion_smoothness": None}) for each in other]
    (result,) = compare(one + blind, baseline="native", ranked=RANKED_OFFLINE)
    assert result["not_ranked"] == "`a` has no motion_smoothness"
    assert result["methods"]["a"]["average_rank"] is None


def test_scores_of_two_back_ends_are_not_compared() -> None:
    one, other = scored("native", [0.5]), scored("a", [0.5])
    mixed = [replace(one[0], back_end="offline: x"), replace(other[0], back_end="official: y")]
    with pytest.raises(
        LlragError, match="scores of different back ends are not compared: `official: y` and `offline: x`"
    ):
        compare(mixed, baseline="native", ranked=RANKED_OFFLINE)


def test_cells_of_one_pipeline_follow_each_other() -> None:
    grid = Grid(("tiny", "longlive"), ("native", "random"), (30.0, 60.0), ((1, "a"), (2, "b")), (0, 1))
    loads = [(cell.backbone, cell.method) for cell in grid.cells()]
    assert len(loads) == 16
    assert sum(one != two for one, two in itertools.pairwise(loads)) == 3
    assert grid.seconds == 60
