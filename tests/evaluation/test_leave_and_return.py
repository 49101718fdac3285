"""``llrag bench leave-and-return``: fixed scenes, a judge that knows ground truth, rows that survive, honest words."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Llrag
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.leave_return.judge import Shares, looked_at, shares_of
from llrag_cli.evaluation.leave_return.picture import ABOUT, sheet
from llrag_cli.evaluation.leave_return.plan import CONDITIONS, GIVEN, Plan
from llrag_cli.evaluation.leave_return.report import SHOTS, rows_csv, summary
from llrag_cli.evaluation.leave_return.study import Row, Study, first_shots, return_shot
from llrag_cli.evaluation.leave_return.trips import trips
from llrag_cli.evaluation.places import full_prompt
from llrag_cli.evaluation.study_plan import POOL_SIZE, POOLS
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.presets import load_config
from llrag_cli.world.checker import wall_color
from llrag_cli.world.sprites import PATTERNS, WALL_COLORS, Scene, Sprite, clip, held_out

FEW = ("sampler.steps=[1000]",)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(load_config("tiny", settings=FEW))


def test_pools_are_fixed_and_disjoint() -> None:
    places = [frozenset([*trip.first.sprites, trip.first.wall, trip.first.pattern]) for p in POOLS for trip in trips(p)]
    assert len(places) == len({*places}) == 2 * POOL_SIZE
    assert full_prompt(trips("search")[1].first) == "a small yellow cross bounces around on a dotted green wall"
    assert (
        full_prompt(trips("confirm")[0].first)
        == "a small yellow cross and a small red cross go round on a plain green wall"
    )


@pytest.mark.parametrize("pool", POOLS)
def test_places_are_new_to_the_model_and_share_nothing(pool: str) -> None:
    for trip in trips(pool):  # type: ignore[arg-type]
        assert all(held_out(sprite, trip.first.wall) for sprite in trip.first.sprites)
        assert not any(held_out(sprite, trip.second.wall) for sprite in trip.second.sprites)
        assert 1 <= len(trip.first.sprites) == len(trip.second.sprites) <= 2
        words = [set(full_prompt(scene).split()) for scene in (trip.first, trip.second)]
        colors_and_shapes = {trip.first.wall} | {w for s in trip.first.sprites for w in (s.color, s.shape)}
        assert colors_and_shapes <= words[0]
        assert not colors_and_shapes & words[1]
        assert not colors_and_shapes & {*trip.return_prompt.split()}
        assert {trip.first.pattern, *(sprite.size for sprite in trip.first.sprites)} <= words[0]
        assert tokenize(full_prompt(trip.first), limit=24)[1] == tokenize(trip.return_prompt, limit=24)[1] == []


def test_the_return_may_retrieve_what_its_condition_says() -> None:
    trip, config = trips("search")[0], load_config("tiny")
    eligible = {}
    for name, condition in CONDITIONS.items():
        timeline = trip.timeline(config, condition.remember)
        assert [shot.sink for shot in timeline.shots] == ["A", "B", "C"]  # every cut drops the sink
        assert timeline.eligible(timeline.shots[1].start) == ("B",)
        eligible[name] = timeline.eligible(timeline.shots[2].start)
    assert eligible == {
        "memory": ("A", "C"),
        "random": ("A", "C"),
        "all": ("A", "B", "C"),
        "wrong": ("B", "C"),
        "none": ("C",),
    }


def test_the_steps_are_what_a_study_has_still_to_make() -> None:
    plan = Plan("search", 3, 2, load_config("tiny"))
    blocks = [len(shot.blocks) for shot in trips("search")[0].timeline(plan.config, "none").shots]
    first, second, last = (plan.config.backbone.frames_per_block * count for count in blocks)
    steps = {step.name: step for step in plan.steps([*plan.row_keys()])}
    assert [*steps] == list(SHOTS)
    assert {step.videos for step in steps.values()} == {step.pictures for step in steps.values()} == {6}
    assert [steps[name].generated for name in ("A", "B", "all")] == [6 * first, 6 * second, 6 * last]
    assert [steps[name].replayed for name in ("A", "B", "all")] == [0, 0, 6 * (first + second)]
    left = plan.steps([(2, 1, "none")])
    assert [(step.name, step.videos, step.pictures) for step in left] == [("A", 1, 0), ("B", 1, 0), ("none", 1, 1)]
    assert plan.steps([]) == []


def test_the_judge_knows_the_place_from_the_other() -> None:
    for trip in trips("search")[:4]:
        for scene, other in ((trip.first, trip.second), (trip.second, trip.first)):
            seen = looked_at(clip(scene, 24, random.Random(0))[0])
            assert shares_of(other, seen) == Shares(0.0, 0.0, 0.0)
            if scene.motion == "orbit" or len(scene.sprites) == 1:  # otherwise one object may hide another
                assert shares_of(scene, seen) == Shares(1.0, 1.0, 1.0)


def test_a_missing_object_is_wrong() -> None:
    one = Sprite("red", "circle", "small")
    two = Sprite("black", "square", "small")
    seen = looked_at(clip(Scene((one,), "gray", "plain", "orbit"), 24, random.Random(0))[0])
    assert shares_of(Scene((one, two), "gray", "plain", "orbit"), seen) == Shares(1.0, 0.5, 0.5)
    mistaken = Sprite("red", "square", "small")
    assert shares_of(Scene((mistaken,), "pink", "plain", "orbit"), seen) == Shares(0.0, 1.0, 0.0)


@pytest.mark.parametrize("wall", WALL_COLORS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_wall_is_known_behind_a_large_object(wall: str, pattern: str) -> None:
    color = "blue" if wall != "blue" else "red"
    scene = Scene((Sprite(color, "square", "large"),), wall, pattern, "bounce")  # type: ignore[arg-type]
    assert {wall_color(frame) for frame in clip(scene, 8, random.Random(1))[0]} == {wall}


def test_conditions_share_the_first_shots_and_the_noise(pipeline: Pipeline) -> None:
    trip = trips("search")[0]
    given, latents = first_shots(pipeline, trip, [3])
    made = {
        name: return_shot(pipeline, trip, CONDITIONS[name], [3], latents)
        for name in ("memory", "random", "wrong", "none")
    }
    assert {name: (len(each.of_a[0]) > 0, all(each.of_a[0])) for name, each in made.items()} == {
        "memory": (True, True),
        "random": (True, True),
        "wrong": (True, False),
        "none": (False, True),
    }
    whole = generated(pipeline, trip.timeline(pipeline.config, "none"), seed=3)
    first = torch.cat([given[name].frames for name in GIVEN], dim=1)
    torch.testing.assert_close(torch.cat([first, made["none"].frames], dim=1), whole)


def generated(pipeline: Pipeline, timeline: object, *, seed: int) -> Tensor:
    with pipeline.start(timeline, seed=[seed]) as session:  # type: ignore[arg-type]
        return ((torch.cat([block.frames for block in session], dim=1) + 1) / 2).clamp(0, 1)


def test_rows_are_kept_and_the_rest_is_made(tmp_path: Path, pipeline: Pipeline) -> None:
    plan = Plan("search", 1, 1, pipeline.config)
    study = Study(tmp_path, plan)
    with pytest.raises(InterruptedError):
        study.run(pipeline, stop_after(4))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"scene": 1, "se')  # a crash in the middle of a row
    again = Study(tmp_path, plan)
    assert [key[2] for key in again.missing()] == ["all", "wrong", "none"]
    rows = again.run(pipeline)
    assert [row.shot for row in rows] == list(SHOTS)
    assert Study(tmp_path, plan).missing() == []
    assert [Row.parse(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert all(study.picture(1, 0, shot).exists() for shot in ABOUT)
    assert sheet(again).startswith(b"\x89PNG")
    for other in (Plan("confirm", 1, 1, pipeline.config), Plan("search", 1, 1, load_config("tiny"))):
        with pytest.raises(UsageError, match=r"was begun with other settings: `(pool|config)` differ"):
            Study(tmp_path, other)


def stop_after(count: int) -> Callable[[Row], None]:
    left = iter(range(count - 1))

    def on_row(_: Row) -> None:
        if next(left, None) is None:
            raise InterruptedError

    return on_row


def rows_with(walls: Mapping[str, float], *, scenes: int = 6) -> list[Row]:
    nothing = Shares(0.0, 0.0, 0.0)
    return [
        Row(scene, seed, shot, Shares(walls.get(shot, 0.0), 0.5, 0.25), nothing, 1.0 if shot == "memory" else None)
        for scene in range(1, scenes + 1)
        for seed in range(2)
        for shot in SHOTS
    ]


def test_differences_are_paired_and_have_intervals() -> None:
    results = summary(rows_with({"A": 1.0, "memory": 0.9, "random": 0.9, "none": 0.2}), {"pool": "search"})
    assert (results["scenes"], results["videos"]) == (6, 12)
    assert results["shots"]["memory"]["of_a"]["wall"] == pytest.approx({"mean": 0.9, "low": 0.9, "high": 0.9})
    assert results["shots"]["memory"]["retrieved_of_a"] == 1.0
    gaps = results["differences"]["memory"]
    assert gaps["none"]["wall"] == pytest.approx({"mean": 0.7, "low": 0.7, "high": 0.7})
    assert gaps["random"]["wall"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert results["sentence"] == (
        "Back at place A under a prompt that names nothing of it, memory of A brings back its wall colour in 90 %, its "
        "object colours in 50 % and its shapes in 25 % of frames, against 20 %, 50 % and 25 % without memory; by 95 % "
        "intervals over 6 scenes it is better in wall colour than no memory, not distinguishable from random frames of "
        "the place and better in wall colour than memory of the wrong place."
    )


def test_intervals_are_over_scenes() -> None:
    rows = [
        Row(row.scene, row.seed, row.shot, Shares(float(row.scene % 2), 0.0, 0.0), row.of_b, None)
        for row in rows_with({})
    ]
    wall = summary(rows, {})["shots"]["memory"]["of_a"]["wall"]
    assert wall["mean"] == 0.5
    assert wall["low"] < 0.2 < 0.8 < wall["high"]  # six scenes, not twelve videos


def test_too_few_scenes_give_no_conclusion() -> None:
    told = summary(rows_with({"memory": 1.0}, scenes=4), {})["sentence"]
    assert told.endswith("without memory (4 scenes, too few for a conclusion).")


def test_every_row_is_in_the_csv() -> None:
    table = list(csv.DictReader(io.StringIO(rows_csv(rows_with({"memory": 0.9})))))
    assert len(table) == 6 * 2 * len(SHOTS)
    row = next(row for row in table if row["shot"] == "memory")
    assert (row["wall_of_a"], row["shape_of_a"], row["retrieved_of_a"]) == ("0.9000", "0.2500", "1.0000")


def test_the_command_writes_table_and_picture(llrag: Llrag, tmp_path: Path) -> None:
    arguments = ("bench", "leave-and-return", "--scenes", "1", "--seeds", "1", "--out", "out", "--set", FEW[0])
    done = llrag(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["settings"]["pool"] == "search"
    assert [row["shot"] for row in told["rows"]] == list(SHOTS)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "pictures",
        "results.csv",
        "results.json",
        "rows.jsonl",
        "settings.json",
        "sheet.png",
    }
    assert "memory minus none" in llrag(*arguments).stdout
    assert llrag(*arguments, "--dry-run").stdout == "nothing is missing in out\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--pool", "confrim"), "unknown pool `confrim`"),
        (("--scenes", "49"), "cannot study 49 scenes with 2 seeds"),
        (("--seeds", "0"), "cannot study 24 scenes with 0 seeds"),
        (("--set", "memory.retrieved=0"), "the memory strategy `nearest` retrieves nothing"),
        (("--set", "memory.strategy=none"), "the memory strategy `none` retrieves nothing"),
    ],
)
def test_impossible_requests_are_refused(llrag: Llrag, arguments: tuple[str, ...], problem: str) -> None:
    done = llrag("bench", "leave-and-return", *arguments)
    assert done.returncode != 0
    assert problem in done.stderr
