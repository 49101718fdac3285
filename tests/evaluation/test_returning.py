"""``llrag bench returning``: fixed scenes, measures that know ground truth, rows that survive, honest words."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Llrag
from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.grid import parse_variant
from llrag_cli.evaluation.returning.judge import Measures, looked_at, measured, reference_of
from llrag_cli.evaluation.returning.picture import sheet
from llrag_cli.evaluation.returning.plan import AGAIN, CONDITIONS, GIVEN, MOMENTS, Plan, windows
from llrag_cli.evaluation.returning.report import MEASURES, rows_csv, summary
from llrag_cli.evaluation.returning.returns import returns
from llrag_cli.evaluation.returning.study import Row, Study, given_shots, strip, unstripped
from llrag_cli.evaluation.study_plan import POOL_SIZE, POOLS, RETURN_POOLS, weights_digests
from llrag_cli.memory.context import context_of
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.embedded.text import tokenize
from llrag_cli.presets import load_config
from llrag_cli.world.sprites import Scene, Sprite, clip, held_out

FEW = "sampler.steps=[1000]"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(load_config("tiny", settings=[FEW]))


def plan_of(config: RunConfig, *conditions: str, **changes: Any) -> Plan:
    return Plan(
        **{"pool": "search", "scenes": 1, "seeds": 1, "seconds": 3.0, "conditions": conditions, "config": config}
        | changes
    )


# --- scenes and conditions --------------------------------------------------------------------------


def test_pools_are_fixed_and_disjoint() -> None:
    scenes = [back.a for pool in RETURN_POOLS for back in returns(pool)]
    assert len({(frozenset(scene.sprites), scene.wall, scene.pattern) for scene in scenes}) == 4 * POOL_SIZE
    assert returns("search")[0].prompts == {
        "A": "a small white circle and a small green square bounce around on a striped gray wall",
        "B": "a large red cross and a large blue triangle go round on a dotted brown wall",
        "C": "a small yellow triangle and a large black cross go round on a striped blue wall",
    }
    assert returns("search")[0].caption == "a shape bounces on a gray background"
    assert returns("confirm")[0].prompts["A"] == "a small red cross goes round on a plain green wall"


@pytest.mark.parametrize("pool", RETURN_POOLS)
def test_the_other_scenes_have_nothing_of_a(pool: str) -> None:
    for back in returns(pool):  # type: ignore[arg-type]
        assert all(held_out(sprite, back.a.wall) == (pool in POOLS) for sprite in back.a.sprites)
        assert back.b != back.c
        described = {back.a.wall} | {word for sprite in back.a.sprites for word in (sprite.color, sprite.shape)}
        assert described <= {*back.prompts["A"].split()}
        assert not described & {*back.prompts["B"].split(), *back.prompts["C"].split()}
        for text in (*back.prompts.values(), back.caption):
            assert tokenize(text, limit=24)[1] == []


def test_the_caption_leaves_most_out() -> None:
    named = total = 0
    for pool in POOLS:
        for back in returns(pool):
            plain = {sprite.color for sprite in back.a.sprites} & {"orange", "white", "black"}  # without synonyms
            total += len(plain)
            named += len(plain & {*back.caption.split()})
    assert 0 < named < 0.6 * total


def test_the_steps_are_what_a_study_has_still_to_make() -> None:
    plan = plan_of(load_config("tiny"), "native", "nearest", scenes=3, seeds=2, seconds=10.0)
    keys = [*plan.row_keys()]
    given, native, nearest = plan.steps(keys)
    frames = sum(map(len, plan.given.values()))
    assert (given.videos, given.generated, given.replayed, given.pictures) == (6, 6 * frames, 0, 6 * len(GIVEN))
    assert native == replace(nearest, name="native", about=native.about)
    assert (native.videos, native.generated, native.replayed) == (6, 6 * plan.latent_frames(10), 6 * frames)
    assert native.pictures == 6 * (len(GIVEN) + MOMENTS)
    given, nearest = plan.steps([key for key in keys if key[0] == 3 and key[2] == "nearest"])
    assert (given.videos, given.generated, given.pictures) == (2, 2 * frames, 0)  # made again for what is missing
    assert (nearest.name, nearest.videos) == ("nearest", 2)
    assert plan.steps([]) == []


def test_conditions_differ_as_they_say() -> None:
    config = load_config("tiny")
    memories = {name: condition.applied(config).memory for name, condition in CONDITIONS.items()}
    assert {name: memory.strategy for name, memory in memories.items()} == {
        "native": "none",
        "nearest": "nearest",
        "random": "random",
        "first": "deep-sink",
        "times": "nearest",
    }
    assert {memory.window for memory in memories.values()} == {12}
    assert memories["nearest"] == config.memory
    parameters = [memories[name].model_dump(exclude={"strategy"}) for name in ("nearest", "random", "first")]
    assert parameters[0] == parameters[1] == parameters[2]
    assert not memories["times"].retrieves
    native, times = (context_of(memories[name], start=120, block=3) for name in ("native", "times"))
    assert native.shared == times.shared == (0, *range(112, 120))  # the same frames, at other times
    assert native.shared_times == native.shared
    assert times.shared_times == (0, *range(1, 9))
    assert isinstance(memories["times"], RetrievalMemory)


def test_lengths_are_whole_blocks() -> None:
    plan = plan_of(load_config("tiny"), "native", seconds=60.0)
    assert {name: len(span) for name, span in plan.given.items()} == {"C": 18, "A": 36, "B": 54, AGAIN: 12}
    assert plan.latent_frames(60) == 120
    assert plan.latent_frames(0.1) == 3
    assert plan.moments == [10, 20, 30, 40, 50, 60]
    assert windows(120, seconds=60.0) == [range(start, start + 20) for start in range(0, 120, 20)]
    assert windows(3, seconds=1.5) == [range(3)]


# --- measures ---------------------------------------------------------------------------------------

A = Scene((Sprite("red", "circle", "small"), Sprite("black", "square", "small")), "gray", "plain", "orbit")


def video(scene: Scene, *, seed: int = 0) -> Tensor:
    return clip(scene, 24, random.Random(seed))[0][::3]


def compared(scene: Scene) -> Measures:
    return measured(looked_at(video(scene, seed=1)), reference_of(looked_at(video(A))))


def with_objects(*sprites: Sprite) -> Scene:
    return replace(A, sprites=sprites)


def test_a_scene_is_like_itself() -> None:
    same = compared(A)
    assert (same.color, same.identity, same.presence) == (1.0, 1.0, 1.0)
    assert same.size is not None
    assert same.size < 0.05
    assert same.tint < 0.01


def test_another_scene_is_not() -> None:
    other = compared(Scene((Sprite("yellow", "cross", "large"),), "pink", "plain", "orbit"))
    assert (other.color, other.identity, other.size, other.presence) == (0.0, 0.0, None, 0.0)
    assert other.tint > 0.2


def test_a_missing_object_is_no_wrong_object() -> None:
    one = compared(with_objects(A.sprites[0]))
    assert (one.color, one.identity, one.presence) == (1.0, 1.0, 0.5)


def test_a_new_object_has_no_color_of_the_scene() -> None:
    made = compared(with_objects(A.sprites[0], Sprite("yellow", "square", "small")))
    assert (made.color, made.identity, made.presence) == (0.5, 0.5, 0.5)


def test_shape_size_and_wall_are_measured_one_by_one() -> None:
    shape = compared(with_objects(Sprite("red", "triangle", "small"), A.sprites[1]))
    assert (shape.color, shape.identity, shape.presence) == (1.0, 0.5, 1.0)
    size = compared(with_objects(Sprite("red", "circle", "large"), A.sprites[1]))
    assert (size.color, size.identity) == (1.0, 1.0)
    assert size.size == pytest.approx(((16 / 12) ** 2 - 1) / 2, abs=0.08)  # one of two objects is larger
    wall = compared(replace(A, wall="brown"))
    assert (wall.color, wall.identity, wall.presence) == (1.0, 1.0, 1.0)
    assert wall.tint == pytest.approx(((5**2 + 40**2 + 75**2) ** 0.5) / 255, abs=0.02)


def test_a_passing_error_is_no_object_of_the_scene() -> None:
    seen = looked_at(video(A))
    strange = looked_at(video(with_objects(Sprite("yellow", "cross", "small"))))[:1]
    assert reference_of([*seen, *strange]).shapes == {"red": "circle", "black": "square"}


def test_where_a_shows_no_object_only_the_wall_is_judged() -> None:
    empty = torch.full((4, 3, *video(A).shape[-2:]), 0.55)
    reference = reference_of(looked_at(empty))
    found = measured(looked_at(video(A)), reference)
    assert (found.color, found.identity, found.size, found.presence) == (None, None, None, None)
    assert found.tint < 0.05


# --- videos -----------------------------------------------------------------------------------------


def test_given_shots_are_the_videos_of_their_own_prompts(pipeline: Pipeline) -> None:
    plan = plan_of(pipeline.config, "native")
    back = returns("search")[0]
    given = given_shots(pipeline, plan, [back], [5])
    native = pipeline.with_memory(CONDITIONS["native"].applied(pipeline.config))
    with native.start(back.prompts["A"], seconds=23.5, seed=[5], samples=[2]) as session:
        own = torch.cat([block.latents for block in session], dim=1)
    spans = [plan.given[name] for name in ("A", AGAIN)]
    stitched = torch.cat([given.latents[:, span.start : span.stop] for span in spans], dim=1)
    torch.testing.assert_close(stitched, own)
    assert given.latents.shape[1] == 120
    assert len(given.again[0]) == 12


def test_rows_are_kept_and_the_rest_is_the_same(tmp_path: Path, pipeline: Pipeline) -> None:
    plan = plan_of(pipeline.config, "native", "nearest", "times")
    whole = Study(tmp_path / "whole", plan).run(pipeline)
    assert [row.shot for row in whole] == [AGAIN, "native", "nearest", "times"]
    assert [row.retrieved_of_a is None for row in whole] == [True, True, False, True]
    assert len({row.whole for row in whole}) == len(whole)
    study = Study(tmp_path / "parts", plan)
    with pytest.raises(InterruptedError):
        study.run(pipeline, stop_after(2))
    with (tmp_path / "parts/rows.jsonl").open("a") as file:
        file.write('{"scene": 1, "se')  # a crash in the middle of a row
    again = Study(tmp_path / "parts", plan)
    assert [key[2] for key in again.missing()] == ["nearest", "times"]
    assert again.run(pipeline) == whole
    assert Study(tmp_path / "parts", plan).rows == whole
    files = [(tmp_path / name / "rows.jsonl").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    assert sheet(again).startswith(b"\x89PNG")
    refused = {
        "pool": replace(plan, pool="confirm"),
        "seconds": replace(plan, seconds=6.0),
        "conditions": replace(plan, conditions=("native",)),
        "config": replace(plan, config=load_config("tiny")),
    }
    for name, other in refused.items():
        with pytest.raises(UsageError, match=f"was begun with other settings: `{name}` differ"):
            Study(tmp_path / "parts", other)
    settings = json.loads((tmp_path / "parts/settings.json").read_text())
    settings["weights"] = dict.fromkeys(settings["weights"], "0" * 64)
    (tmp_path / "parts/settings.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"was begun with other settings: `weights` differ"):
        Study(tmp_path / "parts", plan)


def stop_after(count: int) -> Callable[[Row], None]:
    left = iter(range(count - 1))

    def on_row(_: Row) -> None:
        if next(left, None) is None:
            raise InterruptedError

    return on_row


def test_an_encoder_of_your_own_is_part_of_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(b"one")
    config = load_config("tiny", settings=[f"memory.encoder={json.dumps(str(file))}"])
    before = weights_digests(config)
    assert before.keys() == {*weights_digests(load_config("tiny")), "memory.encoder"}
    file.write_bytes(b"two")
    assert weights_digests(config) != before


def test_a_strip_holds_its_pictures() -> None:
    pictures = [Image.new("RGB", (4, 3), (value, 0, 0)) for value in (10, 20, 30)]
    assert [picture.getpixel((0, 0)) for picture in unstripped(strip(pictures), 3)] == [
        (10, 0, 0),
        (20, 0, 0),
        (30, 0, 0),
    ]


# --- report -----------------------------------------------------------------------------------------

EVEN = Measures(color=0.9, identity=0.8, size=0.2, tint=0.05, presence=0.9)
SETTINGS = {"conditions": list(CONDITIONS), "variants": {}}


def rows_with(
    found: Mapping[str, Measures], *, scenes: int = 6, shots: Sequence[str] = (AGAIN, *CONDITIONS)
) -> list[Row]:
    return [
        Row(scene, 0, shot, found.get(shot, EVEN), (found.get(shot, EVEN),) * 2, None)
        for scene in range(1, scenes + 1)
        for shot in shots
    ]


def sentence_of(found: Mapping[str, Measures], **options: Any) -> str:
    shots = options.get("shots", (AGAIN, *CONDITIONS))
    told: str = summary(rows_with(found, **options), {"conditions": [*shots[1:]], "variants": {}})["sentence"]
    return told


BETTER = replace(EVEN, identity=0.9, tint=0.02)


def test_differences_are_paired_and_have_intervals() -> None:
    results = summary(rows_with({"nearest": BETTER}), SETTINGS)
    assert (results["scenes"], results["videos"]) == (6, 6)
    assert results["conditions"]["nearest"]["whole"]["identity"] == pytest.approx(
        {"mean": 0.9, "low": 0.9, "high": 0.9}
    )
    assert len(results["conditions"]["nearest"]["windows"]) == 2
    assert results["conditions"][AGAIN]["windows"] == []
    gaps = {(each["condition"], each["minus"]): each for each in results["differences"]}
    assert [*gaps] == [
        ("nearest", "native"),
        ("nearest", "random"),
        ("nearest", "first"),
        ("random", "native"),
        ("times", "native"),
    ]
    assert gaps["nearest", "native"]["tint"] == pytest.approx(
        {"mean": -0.03, "low": -0.03, "high": -0.03, "p": 2 / 2**6, "p_corrected": 25 * 2 / 2**6}
    )
    assert gaps["times", "native"]["tint"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_corrected": 1.0}


def test_intervals_are_over_scenes_and_what_was_not_judged_is_left_out() -> None:
    rows = [
        replace(row, whole=replace(row.whole, color=None if row.scene == 6 else float(row.scene % 2)))
        if row.shot == "nearest"
        else row
        for row in rows_with({})
    ]
    results = summary(rows, SETTINGS)
    color = results["conditions"]["nearest"]["whole"]["color"]
    assert color["mean"] == pytest.approx(0.6)
    assert color["low"] < 0.3 < 0.9 < color["high"]
    nothing = [replace(row, whole=replace(row.whole, color=None)) for row in rows]
    results = summary(nothing, SETTINGS)
    assert results["conditions"]["nearest"]["whole"]["color"] is None
    assert results["differences"][0]["color"] is None
    assert "NaN" not in json.dumps(results)


def test_the_sentence_claims_no_more_than_random_frames_allow() -> None:
    alike = replace(EVEN, identity=0.9)  # random frames keep the object as well, and not the wall
    assert sentence_of({"nearest": BETTER, "random": alike}) == (
        "By 95 % intervals over 6 scenes, retrieving the nearest frames is better than the plain window in identity "
        "and wall tint; random old frames do as well in identity and the nearest are better than random old frames in "
        "wall tint, where the choice of frames matters; compared with the first frames the nearest are better in "
        "identity and wall tint; relative times alone gain nothing there."
    )
    told = sentence_of({"nearest": BETTER, "random": BETTER, "first": BETTER, "times": replace(EVEN, tint=0.02)})
    assert told.endswith(
        "; random old frames do as well in identity and wall tint, so nothing shows that "
        "the choice of frames matters; there is no significant difference from the first frames; relative times alone "
        "are better too in wall tint, where retrieved frames need not be the cause."
    )
    told = sentence_of({"nearest": BETTER, "random": replace(BETTER, identity=0.95, tint=0.01)})
    assert "random old frames do better in identity and wall tint, so nothing shows that the choice" in told


def test_the_sentence_does_not_credit_random_frames_with_a_gain_of_their_own() -> None:
    uneven = [
        replace(row, whole=replace(EVEN, identity=0.7 if row.scene % 2 else 1.0)) if row.shot == "random" else row
        for row in rows_with({"nearest": replace(EVEN, identity=0.9)})
    ]
    told = summary(uneven, SETTINGS)["sentence"]
    assert "; there is no significant difference from random old frames in identity, so nothing shows" in told


def test_the_sentence_says_when_nothing_is_gained() -> None:
    assert sentence_of({}) == (
        "By 95 % intervals over 6 scenes, retrieving the nearest frames shows no significant gain over the plain "
        "window."
    )
    assert sentence_of({"nearest": replace(EVEN, size=0.3, presence=0.7)}).endswith(
        "shows no significant gain over the plain window and is worse in size error and presence."
    )
    assert "is better than the plain window in wall tint and is worse in colour;" in sentence_of(
        {"nearest": replace(EVEN, tint=0.01, color=0.5)}
    )


def test_the_sentence_names_controls_that_are_missing() -> None:
    told = sentence_of({"nearest": BETTER}, shots=(AGAIN, "native", "nearest"))
    assert "random old frames were not tried, so it is open whether the choice of frames matters" in told
    assert "relative times alone were not tried, so it is open whether they are the cause" in told
    assert sentence_of({}, shots=(AGAIN, "native")).startswith("No conclusion: that takes the conditions")
    assert sentence_of({"nearest": BETTER}, scenes=4) == "No conclusion: 4 scenes, too few for one."


def test_every_row_and_window_is_in_the_csv() -> None:
    table = list(csv.DictReader(io.StringIO(rows_csv(rows_with({"nearest": BETTER}), count=40, seconds=20.0))))
    assert len(table) == 6 * (1 + len(CONDITIONS)) + 2 * 6 * (1 + len(CONDITIONS))
    mine = [row for row in table if row["condition"] == "nearest" and row["scene"] == "1"]
    assert [(row["from_second"], row["to_second"]) for row in mine] == [("0", "20"), ("0", "10"), ("10", "20")]
    assert (mine[0]["identity"], mine[0]["tint"], mine[0]["retrieved_of_a"]) == ("0.9000", "0.0200", "")
    assert {*MEASURES} <= mine[0].keys()


# --- the command ------------------------------------------------------------------------------------


def test_the_command_writes_table_and_picture(llrag: Llrag, tmp_path: Path) -> None:
    arguments = ("bench", "returning", "--scenes", "1", "--seconds", "3", "--out", "out", "--set", FEW)
    done = llrag(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["settings"]["conditions"] == [*CONDITIONS]
    assert [row["shot"] for row in told["rows"]] == [AGAIN, *CONDITIONS]
    assert told["sentence"] == "No conclusion: 1 scene, too few for one."
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "pictures",
        "results.csv",
        "results.json",
        "rows.jsonl",
        "settings.json",
        "sheet.png",
    }
    with Image.open(tmp_path / "out/pictures/01-seed0-nearest.png") as picture:
        config = load_config("tiny")
        assert picture.size == (config.width * (len(GIVEN) + MOMENTS), config.height)
    assert "nearest minus random" in llrag(*arguments).stdout
    told = json.loads(llrag(*arguments, "--dry-run", "--json").stdout)
    assert told == {"folder": "out", "shots": [], "seconds_of_work": 0.0, "bytes": 0}
    lines = (tmp_path / "out/rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out/rows.jsonl").write_text("".join(lines[:3]))
    planned = llrag(*arguments, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "6 rows in out: 3 missing, 3 finished" in planned.stderr
    table = [line.split(":")[0] for line in planned.stdout.splitlines()]
    assert table[1:-1] == ["given", "random", "first", "times"] and table[-1].startswith("about ")
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 3  # nothing is made
    refused = llrag(*arguments, "--condition", "native")
    assert refused.returncode == 2
    assert "`out` was begun with other settings: `conditions` differ" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--pool", "confrim"), "unknown pool `confrim`\n\nhint: did you mean `confirm`?"),
        (("--condition", "nearset"), "unknown condition `nearset`\n\nhint: did you mean `nearest`?"),
        (("--condition", "native", "--condition", "native"), "each condition is measured once"),
        (("--scenes", "49"), "cannot study 49 scenes with 1 seeds"),
        (("--seeds", "0"), "cannot study 24 scenes with 0 seeds"),
        (("--seconds", "0"), "a scene cannot go on for 0 seconds"),
        (("--seconds", "soon"), "`soon` is not a length of time"),
        (("--set", "memory.retrieved=0"), "the memory strategy `nearest` retrieves nothing"),
        (("--set", "memory.strategy=none"), "the memory strategy `none` retrieves nothing"),
        (("--set", "memory.strategy=random"), "the conditions choose the memory strategy"),
        (("--backbone", "self-forcing"), "returning scenes are judged in the sprite world"),
    ],
)
def test_impossible_requests_are_refused(llrag: Llrag, arguments: tuple[str, ...], problem: str) -> None:
    done = llrag("bench", "returning", *arguments)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_variant_is_one_more_condition_with_its_words(pipeline: Pipeline) -> None:
    variants = (parse_variant("k2=memory.retrieved=2"), parse_variant("late=memory.strategy=successor"))
    plan = plan_of(pipeline.config, "native", "nearest", variants=variants)
    assert [shot for _, _, shot in plan.row_keys()] == [AGAIN, "native", "nearest", "k2", "late"]
    few, late = (plan.measured[name].applied(pipeline.config).memory for name in ("k2", "late"))
    assert isinstance(few, RetrievalMemory) and few.retrieved == 2
    assert late.strategy == "successor"
    assert plan.settings["variants"] == {"k2": ["memory.retrieved=2"], "late": ["memory.strategy=successor"]}
    for name in ("native", AGAIN):
        with pytest.raises(UsageError, match=f"a variant cannot be named `{name}`"):
            plan_of(pipeline.config, "nearest", variants=(parse_variant(f"{name}=memory.retrieved=2"),))
    with pytest.raises(UsageError, match=r"memory\.retreived"):
        plan_of(pipeline.config, "nearest", variants=(parse_variant("k2=memory.retreived=2"),))

    def row(scene: int, shot: str, identity: float) -> Row:
        measures = Measures(color=0.9, identity=identity, size=0.1, tint=0.1, presence=0.9)
        return Row(scene, 0, shot, measures, (measures,), None)

    rows = [row(scene, shot, 0.5) for scene in range(1, 13) for shot in (AGAIN, "native", "nearest")]
    rows += [row(scene, "k2", 0.6 + 0.001 * scene) for scene in range(1, 13)]
    rows += [row(scene, "late", 0.5 + 0.1 * (scene % 2)) for scene in range(1, 13)]
    found = summary(rows, {"conditions": ["native", "nearest", "k2", "late"], "variants": plan.settings["variants"]})
    assert found["variants"] == [
        "k2 against nearest: better in identity",
        "late against nearest: better in identity†",
        "† not significant after Holm's correction for 25 tests",
    ]
    (gap,) = [each for each in found["differences"] if (each["condition"], each["minus"]) == ("k2", "nearest")]
    assert gap["identity"]["p"] == 2 / 2**12 and gap["identity"]["p_corrected"] == 25 * 2 / 2**12
