"""The benchmark end to end on a tiny grid, and the comparison of known scores."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from browser import wait_until
from conftest import Llrag, call_llrag
from engines import Here
from llrag_cli import LlragError
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.grid import Case, Grid, encoder_variant, parse_variant, strategy_variant, subset
from llrag_cli.evaluation.metrics.registry import METRICS, ranked_metrics
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.report import overview, table
from llrag_cli.evaluation.results import compare, prompts_needed, verdict
from llrag_cli.evaluation.run import Scored
from llrag_cli.evaluation.suites import SUITES, find_suite
from llrag_cli.memory.strategies import Random
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config

RANKED = ranked_metrics("offline")
FEW = ("--set", "video.upscale=1", "--set", "sampler.steps=[1000, 500]")
GRID = ("bench", "--out", "b", "--count", "2", "--horizon", "9", "--horizon", "4", *FEW)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark, made once."""
    folder = tmp_path_factory.mktemp("bench")
    done = call_llrag(folder, *GRID)
    assert done.returncode == 0, done.stderr
    assert "tiny, 9 s, 2 prompts, 2 videos of each memory" in done.stdout
    assert done.stdout.endswith("b/results.json\nb/results.csv\nb/report.html\n")
    return folder / "b"


@pytest.fixture
def bench(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil, in the folder that ``llrag`` is called in."""
    return Path(shutil.copytree(made, tmp_path / "b"))


def test_everything_is_there(made: Path) -> None:
    told = json.loads((made / "results.json").read_text())
    assert (told["schema"], told["baseline"]) == (2, "none")
    assert [(result["backbone"], result["seconds"], result["videos"]) for result in told["results"]] == [
        ("tiny", 4, 2),
        ("tiny", 9, 2),
    ]
    for result in told["results"]:
        none, nearest = result["memories"]["none"], result["memories"]["nearest"]
        assert none["average_rank"] + nearest["average_rank"] == pytest.approx(3)
        for name, found in nearest["differences"].items():
            gap = nearest["means"][name] - none["means"][name]
            assert found["low"] - 1e-6 <= found["mean"] <= found["high"] + 1e-6
            if name in result["ranked_by"]:
                assert found["mean"] == pytest.approx(gap, abs=1e-6)
    rows = list(csv.DictReader((made / "results.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert {row["memory"] for row in rows} == {"none", "nearest"}
    assert {video["frames"] for video in told["videos"]} == {33, 81}  # a shorter horizon is the beginning


def test_the_page_holds_all_it_needs(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[0])
    assert len(data["videos"]) == 2 and page.count('class="chart"') == 3
    entries = [entry for video in data["videos"] for entry in video["memories"]]
    assert all(entry["source"].startswith("data:video/mp4;base64,") for entry in entries)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert [bool(entry["blocks"]) for entry in entries] == [False, True, False, True]


@pytest.mark.parametrize(("width", "height", "scheme"), [(1200, 900, "light"), (390, 844, "dark")])
def test_the_page_works_in_a_browser(made: Path, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    messages: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto((made / "report.html").as_uri())
        assert page.locator("figure.chart").count() == 3
        assert page.locator("video").count() == 2
        assert "average rank" in page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("#play").focus()
        page.keyboard.press("Enter")  # no mouse is needed
        times = "[...document.querySelectorAll('video')].map(video => video.currentTime)"
        wait_until(page, f"{times}.every(time => time > 1)")
        gaps = []
        for _ in range(15):
            one, other = page.evaluate(times)
            gaps.append(abs(one - other))
            page.wait_for_timeout(100)
        assert sorted(gaps)[12] < 0.1, gaps  # a busy machine may stop one of them for a moment
        seek = "const to = document.getElementById('seek'); to.value = 3; to.dispatchEvent(new Event('input'))"
        page.evaluate(f"() => {{ document.querySelectorAll('video').forEach(video => video.pause()); {seek} }}")
        wait_until(page, f"{times}.every(time => Math.abs(time - 3) < 0.1)")
        browser.close()
    assert not messages


def test_done_again_nothing_is_made(llrag: Llrag, bench: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in bench.rglob("video.mp4")}
    done = llrag(*GRID, "--json")
    assert done.returncode == 0, done.stderr
    assert "4 videos of 9 s in b: 0 missing, 4 finished" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in bench.rglob("video.mp4")} == before
    assert json.loads(done.stdout)["results"] == json.loads((bench / "results.json").read_text())["results"]


def test_a_suite_fills_in_what_is_not_asked_for_and_quotes_what_was_published(llrag: Llrag, bench: Path) -> None:
    whole = (bench / "report.html").read_text(encoding="utf-8")
    done = llrag(*GRID, "--suite", "paper", "--backbone", "tiny")
    assert done.returncode == 0, done.stderr
    assert "0 missing, 4 finished" in done.stderr  # its memories, and the lengths and prompts that were asked for
    page = (bench / "report.html").read_text(encoding="utf-8")
    said = SUITES["paper"].published
    assert said in done.stdout.replace("\n", " ") and said in page and said not in whole


def test_the_backbones_of_the_suite_are_in_the_package() -> None:
    suite = SUITES["paper"]
    for backbone in suite.backbones:
        config = load_config(backbone)
        assert config.sampler == load_config("self-forcing").sampler
        assert family_of(config).bundled and not family_of(config).missing(config, Path())
    with pytest.raises(UsageError, match="unknown suite `papr`") as caught:
        find_suite("papr")
    assert "paper" in str(caught.value.hint)


def test_a_page_can_be_kept_small(llrag: Llrag, bench: Path) -> None:
    whole = (bench / "report.html").stat().st_size
    done = llrag(*GRID, "--page-size", f"{whole - 2000}", "--json")
    assert done.returncode == 0, done.stderr
    page = (bench / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 comparisons are not shown here" in page and page.count("data:video/mp4") == 2
    done = llrag(*GRID, "--page-size", "1KB")
    assert "although it plays no video" in done.stderr
    page = (bench / "report.html").read_text(encoding="utf-8")
    assert "data:video/mp4" not in page and "2 of 2 comparisons are not shown here" in page
    assert "<script" not in page and 'class="chart"' in page


def test_a_shorter_horizon_uses_what_is_there_and_a_longer_one_does_not(llrag: Llrag, bench: Path) -> None:
    shorter = llrag(*GRID[:5], "--horizon", "4", *FEW, "--dry-run")
    assert "0 missing, 4 finished" in shorter.stderr, shorter.stderr
    longer = llrag(*GRID[:5], "--horizon", "20", *FEW, "--dry-run", "--json")
    assert "4 missing, 0 finished" in longer.stderr
    assert json.loads(longer.stdout)[0]["seconds_of_video"] == 80


def test_half_made_and_other_videos_are_made_anew(llrag: Llrag, bench: Path) -> None:
    runs = sorted(bench.glob("videos/tiny/*/*"))
    record = json.loads((runs[0] / "run.json").read_text())
    (runs[0] / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    (runs[1] / "run.json").write_text("{half")
    (runs[2] / "video.mp4").unlink()
    assert "3 missing, 1 finished" in llrag(*GRID, "--dry-run").stderr
    plan = json.loads(llrag(*GRID, "--dry-run", "--json").stdout)
    assert plan[0]["videos"] == 3 and plan[0]["seconds_of_work"] > 0 and plan[0]["bytes"] > 0
    assert plan[0]["seconds_of_scoring"] > 0
    assert "4 missing" in llrag(*GRID[:-1], "sampler.steps=[1000]", "--dry-run").stderr


@pytest.mark.parametrize("change", [{"clips": 1}, {"per_clip": {}}, {"per_clip": {"x": [1e308]}, "clips": 1}])
def test_scores_that_contradict_themselves_are_computed_again(
    llrag: Llrag, made: Path, bench: Path, change: dict[str, object]
) -> None:
    file = next(iter(sorted(bench.glob("videos/tiny/*/*/scores-offline.json"))))
    content = json.loads(file.read_text())
    content["horizons"]["9"] |= change
    file.write_text(json.dumps(content))
    done = llrag(*GRID)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == (made / file.relative_to(bench)).read_bytes()


def test_a_video_of_no_frames_has_no_rate(llrag: Llrag, bench: Path) -> None:
    file = next(iter(sorted(bench.glob("videos/tiny/*/*/run.json"))))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_frames_written": 0}))
    assert llrag(*GRID, "--dry-run").returncode == 0


def test_an_engine_makes_and_scores_the_same(
    llrag: Llrag, made: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llrag_cli.batch.executors.parse_engine", lambda address: Here())
    whole, unscored, gone = sorted(path.parent for path in bench.glob("videos/tiny/*/*/video.mp4"))[:3]
    (unscored / "scores-offline.json").unlink()
    shutil.rmtree(gone)
    kept = (whole / "run.json").stat().st_mtime_ns
    done = llrag(*GRID, "--engine", "local:2")
    assert done.returncode == 0, done.stderr
    assert "1 missing, 3 finished" in done.stderr and "2/2 done" in done.stderr
    assert (whole / "run.json").stat().st_mtime_ns == kept
    for run in (unscored, gone):
        for name in ("video.mp4", "latents.safetensors", "scores-offline.json"):
            assert (run / name).read_bytes() == (made / run.relative_to(bench) / name).read_bytes()
    assert json.loads((bench / "results.json").read_text()) == json.loads((made / "results.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "slurm"], "unknown engine `slurm`"),
        (["--backbone", "tinny"], "unknown preset `tinny`"),
        (["--memory", "nearst"], "unknown memory strategy `nearst`"),
        (["--horizon", "0"], "a horizon must be longer than 0 seconds"),
        (["--seeds", "0"], "a benchmark needs at least one prompt and one seed"),
        (["--backbone", "longlive"], "these backbones need a file of prompts"),
        (["--prompts", "no.txt"], "no prompt file `no.txt`"),
        (["--set", "memory.sinks=2"], "unknown setting `memory.sinks`"),
    ],
)
def test_bad_requests_get_a_sentence(llrag: Llrag, arguments: list[str], said: str) -> None:
    done = llrag("bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "hint: " in done.stderr
    assert not Path("bench").exists()


def test_memories_differ_in_memory_only() -> None:
    none, random = (
        strategy_variant("none").config("tiny"),
        strategy_variant("random").config("tiny", ["memory.guard=1"]),
    )
    assert isinstance(random.memory, Random) and random.memory.guard == 1
    assert none.sampler == random.sampler and none.backbone == random.backbone
    assert none.memory.window == random.memory.window  # equal context
    assert strategy_variant("none").config("tiny", ["memory.guard=1"]) == none


def test_a_share_of_prompts_keeps_its_numbers() -> None:
    prompts = [f"prompt {number}" for number in range(1, 41)]
    drawn = subset(prompts, count=5, seed=3)
    assert len(drawn) == 5 and drawn == subset(prompts, count=5, seed=3) != subset(prompts, count=5, seed=4)
    assert all(text == f"prompt {number}" for number, text in drawn)
    assert len(subset(prompts, count=None, seed=0)) == len(subset(prompts, count=99, seed=0)) == 40


def scores(**known: float | None) -> Scores:
    return Scores(frames=240, clips=15, metrics={name: known.get(name) for name in METRICS}, per_clip={})


def scored(memory: str, values: list[float | None], name: str = "first_to_last") -> list[Scored]:
    ranked = dict.fromkeys(RANKED, 0.5)
    return [
        Scored(Case("tiny", memory, number, "a", 0), 30.0, scores(**{**ranked, name: value}))
        for number, value in enumerate(values, start=1)
    ]


def test_a_significant_gain_is_reported_and_chance_is_not() -> None:
    base = [0.5 + 0.01 * number for number in range(12)]
    sure = [value + 0.1 + 0.01 * (-1) ** number for number, value in enumerate(base)]
    chance = [value + 0.1 * (-1) ** number for number, value in enumerate(base)]
    (result,) = compare(scored("none", base) + scored("a", sure) + scored("b", chance), baseline="none", ranked=RANKED)
    assert result["memories"]["a"]["differences"]["first_to_last"]["wins"] == 1
    assert result["memories"]["b"]["differences"]["first_to_last"]["wins"] == 0.5
    assert verdict(result, baseline="none").lines == [  # 12 prompts that all gain stand the correction
        "a against none. Drift: better in similarity of first and last clip; VBench: no significant difference",
        "b against none. Drift: no significant difference; VBench: no significant difference",
    ]
    assert {entry["average_rank"] for entry in result["memories"].values()} == {2}


def test_less_is_better_where_it_is() -> None:
    base = [1.0 + 0.01 * number for number in range(8)]
    noisy = [value + 0.5 + 0.01 * (number % 3) for number, value in enumerate(base)]
    both = scored("none", base, "chroma_noise_growth") + scored("a", noisy, "chroma_noise_growth")
    (result,) = compare(both, baseline="none", ranked=RANKED)
    assert "Drift: worse in growth of chroma noise" in str(verdict(result, baseline="none"))
    assert result["memories"]["a"]["differences"]["chroma_noise_growth"]["wins"] == 0


def test_too_few_prompts_are_too_few() -> None:
    (result,) = compare(scored("none", [0.1, 0.2]) + scored("a", [0.5, 0.6]), baseline="none", ranked=RANKED)
    assert str(verdict(result, baseline="none")).endswith("fewer than 5 prompts, too few for a conclusion")


def test_only_what_every_method_has_is_compared() -> None:
    (result,) = compare(scored("none", [0.1, 0.2, 0.3]) + scored("a", [0.1]), baseline="none", ranked=RANKED)
    assert result["videos"] == 1


def test_a_missing_dimension_is_not_ranked() -> None:
    one, other = scored("none", [0.5]), scored("a", [0.5])
    blind = [replace(video, scores=scores(**{**video.scores.metrics, "motion_smoothness": None})) for video in other]
    (result,) = compare(one + blind, baseline="none", ranked=RANKED)
    assert result["not_ranked"] == "`a` has no motion_smoothness"
    assert result["memories"]["a"]["average_rank"] is None


DRIFT = {"first_to_last": 0.9, "similarity_slope": -0.1, "chroma_noise_growth": 1.0, "histogram_overlap": 0.7}


def drifting(memory: str, backbone: str = "tiny", seconds: float = 30.0, **changed: float | None) -> list[Scored]:
    """Six videos with equal figures of VBench, and figures of drift that differ where ``changed``."""
    metrics = {**dict.fromkeys(RANKED, 0.5), **DRIFT, **changed}
    return [Scored(Case(backbone, memory, n, "a", 0), seconds, scores(**metrics)) for n in range(1, 7)]


def test_drift_is_ranked_apart() -> None:
    calm = {"first_to_last": 0.95, "similarity_slope": -0.05, "chroma_noise_growth": 0.5}  # and one is level
    (result,) = compare(drifting("none") + drifting("a", **calm), baseline="none", ranked=RANKED)
    assert set(result["drift_ranked_by"]) == set(DRIFT)
    entries = result["memories"]
    assert [entries[name]["average_rank"] for name in ("none", "a")] == [1.5, 1.5]
    assert [entries[name]["drift_rank"] for name in ("none", "a")] == [(2 + 2 + 2 + 1.5) / 4, (1 + 1 + 1 + 1.5) / 4]
    (short,) = compare(drifting("none") + drifting("a", first_to_last=None), baseline="none", ranked=RANKED)
    assert short["drift_ranked_by"] == [] and short["memories"]["a"]["drift_rank"] is None


def test_several_backbones_and_horizons_at_a_glance() -> None:
    videos = [
        *drifting("none", sprite_identity=0.5),
        *drifting("nearest", sprite_identity=0.75, first_to_last=0.95),
        *drifting("none", "longlive"),
        *drifting("none", seconds=60.0, sprite_identity=0.25),
        *drifting("nearest", seconds=60.0, sprite_identity=0.25),
    ]
    results = compare(videos, baseline="none", ranked=RANKED)
    table = overview(results)
    assert table is not None and overview(results[:1]) is None
    assert table.columns[2] == "objects kept, 30\u00a0s" and len(table.columns) == 6
    rows = {row.heading: ["; ".join((cell.text, *cell.below)) for cell in row.cells] for row in table.rows}
    assert rows == {
        "tiny, none (sliding window)": ["1.50", "1.62", "0.5000", "1.50", "1.50", "0.2500"],
        "tiny, nearest": [
            *("1.50", "1.38", "0.7500; +0.2500†, 100 % won; [+0.2500, +0.2500]"),
            *("1.50", "1.50", "0.2500; +0.0000, 50 % won; [+0.0000, +0.0000]"),
        ],
        "longlive, none (sliding window)": ["1.00", "1.00", "–", "–", "–", "–"],
    }
    assert [cell.tone for cell in table.rows[1].cells] == ["", "", "good", "", "", ""]


def test_scores_of_two_backends_cannot_be_compared() -> None:
    one, other = scored("none", [0.5]), scored("a", [0.5])
    mixed = [replace(one[0], backend="offline: x"), replace(other[0], backend="official: y")]
    with pytest.raises(
        LlragError, match="scores of different backends cannot be compared: `official: y` and `offline: x`"
    ):
        compare(mixed, baseline="none", ranked=RANKED)


def test_cases_of_one_pipeline_follow_each_other() -> None:
    memories = (strategy_variant("none"), strategy_variant("random"))
    grid = Grid(
        ("tiny", "longlive"),
        memories,
        (30.0, 60.0),
        ((1, "a"), (2, "b")),
        (0, 1),
    )
    loads = [(case.backbone, case.memory) for case in grid.cases()]
    assert len(loads) == 16
    assert sum(one != two for one, two in itertools.pairwise(loads)) == 3
    assert grid.seconds == 60


@pytest.mark.parametrize(("tests", "prompts"), [(0, 6), (1, 6), (5, 8), (13, 10), (48, 11)])
def test_enough_prompts_for_the_correction(tests: int, prompts: int) -> None:
    """If all prompts gain, the p-value is 2 in 2^n, which Holm's correction multiplies by the number of tests."""
    assert prompts_needed(tests) == prompts


def test_a_gain_that_does_not_stand_the_correction_is_marked() -> None:
    base = [0.5 + 0.01 * number for number in range(6)]
    sure = [value + 0.1 + 0.01 * (-1) ** number for number, value in enumerate(base)]
    (result,) = compare(scored("none", base) + scored("a", sure), baseline="none", ranked=RANKED)
    gap = result["memories"]["a"]["differences"]["first_to_last"]
    assert gap["p"] == 2 / 2**6  # the least that six prompts can give
    tests = 1 + len(RANKED)  # what is neither better nor worse is not tested
    assert result["tests"] == tests and gap["p_corrected"] == pytest.approx(tests * 2 / 2**6)
    said = verdict(result, baseline="none")
    assert said.lines == [
        "a against none. Drift: better in similarity of first and last clip†; VBench: no significant difference",
        f"† by its interval alone, not after Holm's correction for {tests} tests",
        "no difference can stand the correction with 6 prompts; that takes at least 8",
    ]
    cells = {row.heading: row.cells for row in table(result, baseline="none").rows}
    assert cells["similarity of first and last clip ↑"][1].below[0] == "+0.1000†, 100 % won"


def test_a_variant_has_settings_of_its_own() -> None:
    few = parse_variant("k2=memory.retrieved=2 memory.guard=1")
    assert few.config("tiny").memory == load_config("tiny", settings=["memory.retrieved=2", "memory.guard=1"]).memory
    other = parse_variant("next=memory.strategy=successor memory.commit=recent")
    memory = other.config("tiny", ["memory.guard=3", "memory.relevance=0.2", "sampler.steps=[1000]"]).memory
    assert (memory.strategy, memory.commit) == ("successor", "recent")
    assert memory.model_dump()["guard"] == 3  # shared settings apply, as far as its strategy has them
    assert parse_variant("k2=memory.guard=1").config("tiny", ["memory.guard=3"]).memory.model_dump()["guard"] == 1
    assert parse_variant("successor=memory.strategy=successor memory.commit=recent").name == "successor"
    quoted = parse_variant("one='sampler.steps=[1000, 500]'").config("tiny")
    assert quoted.sampler.steps == (1000, 500)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("k2", "the variant `k2` has no settings"),
        ("=memory.retrieved=2", "a variant cannot be named ``"),
        ("a/b=memory.retrieved=2", "a variant cannot be named `a/b`"),
        ("nearest=memory.retrieved=2", "a variant cannot be named `nearest`"),
        ("nearest=memory.strategy=successor", "a variant cannot be named `nearest`"),
        ("k='memory.retrieved=2", "the settings of the variant `k` cannot be read"),
    ],
)
def test_a_wrong_variant_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        parse_variant(text)


def test_a_variant_of_the_encoder_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "own encoder.safetensors"
    file.write_bytes(b"")
    memory = encoder_variant(f"mine={file}").config("tiny").memory.model_dump()
    assert (memory["keys"], memory["encoder"]) == ("encoder", str(file))
    with pytest.raises(UsageError, match="no such file: `absent`"):
        encoder_variant("mine=absent")


def test_a_wrong_setting_of_a_variant_names_the_setting() -> None:
    with pytest.raises(UsageError, match=r"memory\.retreived"):
        parse_variant("k2=memory.retreived=2").config("tiny")
