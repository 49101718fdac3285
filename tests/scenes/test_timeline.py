"""Shots tile the video in whole blocks, near where they were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llrag_cli.config import BackboneConfig, RunConfig
from llrag_cli.memory.strategies import Nearest
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import Timeline, plan_timeline


def backbone(frames_per_block: int = 3, fps: int = 16) -> RunConfig:
    shape = {"family": "tiny", "frames_per_block": frames_per_block, "fps": fps}
    return RunConfig(name="test", backbone=BackboneConfig.model_validate(shape))


def shots(*seconds: float) -> Scene:
    return Scene.model_validate({"shots": [{"prompt": "a fox", "seconds": length} for length in seconds]})


geometries = st.builds(backbone, st.sampled_from([1, 3]), st.sampled_from([8, 16, 24]))
lengths = st.lists(st.floats(0.01, 60), min_size=1, max_size=12)


@given(lengths, geometries)
def test_spans_tile_the_video(seconds: list[float], config: RunConfig) -> None:
    timeline = plan_timeline(shots(*seconds), config)
    extents = [timeline.extent(shot) for shot in timeline.shots]
    for unit, total in (
        ("blocks", timeline.blocks),
        ("latent_frames", timeline.latent_frames),
        ("video_frames", timeline.video_frames),
    ):
        ranges = [getattr(extent, unit) for extent in extents]
        assert [number for stretch in ranges for number in stretch] == list(range(total))
        assert all(ranges)
    assert timeline.video_frames == config.video_frames(timeline.latent_frames)
    assert extents[-1].end_seconds == timeline.seconds


@given(lengths, geometries)
def test_the_length_is_that_of_one_prompt(seconds: list[float], config: RunConfig) -> None:
    timeline = plan_timeline(shots(*seconds), config)
    blocks = config.latent_frames(sum(seconds)) // config.backbone.frames_per_block
    assert timeline.blocks == max(blocks, len(seconds))


@given(st.lists(st.floats(3, 60), min_size=1, max_size=12), geometries)
def test_a_shot_begins_at_the_nearest_block(seconds: list[float], config: RunConfig) -> None:
    timeline = plan_timeline(shots(*seconds), config)
    block = 4 * config.backbone.frames_per_block
    for number, shot in enumerate(timeline.shots):
        asked = sum(seconds[:number]) * config.backbone.fps
        assert abs(timeline.extent(shot).video_frames.start - asked) <= block / 2 + 1e-6


@given(lengths, lengths, geometries)
def test_a_finished_run_keeps_its_blocks(before: list[float], after: list[float], config: RunConfig) -> None:
    done = plan_timeline(shots(*before), config)
    longer = plan_timeline(shots(*before, *after), config, done=done)
    assert longer.shots[: len(before)] == done.shots
    assert longer.shots[len(before)].start == done.blocks
    added = longer.video_frames - done.video_frames
    assert added >= sum(after) * config.backbone.fps - 1e-5
    assert plan_timeline(shots(*before), config, done=done) == done


@given(lengths, geometries, st.data())
def test_blocks_and_frames_know_their_shot(seconds: list[float], config: RunConfig, data: st.DataObject) -> None:
    timeline = plan_timeline(shots(*seconds), config)
    block = data.draw(st.integers(0, timeline.blocks - 1))
    shot = timeline.shot_at(block)
    assert block in shot.blocks
    assert timeline.shot_of_frame(block * timeline.frames_per_block) == shot
    past = [frame for frames in timeline.eligible_frames(block).values() for frame in frames]
    assert sorted(past) == list(range(block * timeline.frames_per_block))  # every shot remembers all by default


def test_a_block_outside_of_the_video() -> None:
    with pytest.raises(IndexError, match="block 5 of 5"):
        plan_timeline(shots(2.9), backbone()).shot_at(5)


def test_exact_numbers() -> None:
    timeline = plan_timeline(shots(12, 8, 6), backbone())
    first, second, third = (timeline.extent(shot) for shot in timeline.shots)
    assert first.latent_frames == range(48) and first.video_frames == range(189)
    assert second.video_frames == range(189, 321) and second.start_seconds == 11.8125
    assert third.latent_frames == range(81, 105) and third.video_frames == range(321, 417)
    assert timeline.seconds == 417 / 16


def test_very_short_shots_have_a_block_each() -> None:
    assert [shot.blocks for shot in plan_timeline(shots(0.1, 0.1, 0.1), backbone()).shots] == [
        range(1),
        range(1, 2),
        range(2, 3),
    ]
    timeline = plan_timeline(shots(12, 0.1), backbone())  # the last one takes its block from the end
    assert timeline.blocks == 17 and timeline.shots[1].blocks == range(16, 17)


RETRIEVING = backbone().model_copy(update={"memory": Nearest()})


def one_frame(path: Path, config: RunConfig) -> int:
    return 1


STORY = Scene.model_validate(
    {
        "references": {"mara": "mara.png", "house": "house.png"},
        "shots": [
            {"prompt": "a", "seconds": 3, "name": "arrival", "cut": True},
            {"prompt": "b", "seconds": 3},
            {"prompt": "c", "seconds": 3, "cut": True, "remember": "none"},
            {"prompt": "d", "seconds": 3, "recache": "none"},
            {"prompt": "e", "seconds": 3, "cut": True, "remember": ["mara", "arrival"]},
            {"prompt": "f", "seconds": 3, "cut": True, "remember": "none", "sink": "keep"},
            {"prompt": "g", "seconds": 3, "cut": True, "sink": "drop"},
            {"prompt": "h", "seconds": 3, "cut": True},
        ],
    }
)


def test_what_changes_at_each_shot() -> None:
    timeline = plan_timeline(STORY, RETRIEVING, measure=one_frame)
    assert [shot.kind for shot in timeline.shots] == ["start", "switch", "cut", "switch", "cut", "cut", "cut", "cut"]
    assert [shot.recache for shot in timeline.shots] == [None, None, None, "none", None, None, None, None]


def test_a_cut_keeps_the_sink_of_a_shot_it_may_remember() -> None:
    sinks = [shot.sink for shot in plan_timeline(STORY, RETRIEVING, measure=one_frame).shots]
    assert sinks == ["arrival", "arrival", "shot-3", "shot-3", "shot-5", "shot-5", "shot-7", "shot-7"]


def test_what_each_shot_may_remember() -> None:
    timeline = plan_timeline(STORY, RETRIEVING, measure=one_frame)
    eligible = [timeline.eligible(shot.start) for shot in timeline.shots]
    assert eligible[0] == ("mara", "house", "arrival")
    assert eligible[1] == ("mara", "house", "arrival", "shot-2")
    assert eligible[2] == ("shot-3",)
    assert eligible[4] == ("mara", "arrival", "shot-5")
    assert timeline.eligible_references(timeline.shots[4].start) == ("mara",)
    assert timeline.eligible_frames(timeline.shots[4].start) == {
        "arrival": timeline.extent(timeline.shots[0]).latent_frames
    }
    assert timeline.eligible_frames(timeline.shots[2].start) == {}
    later = timeline.shots[2].start + 1
    assert timeline.eligible_frames(later) == {"shot-3": range(3 * later - 3, 3 * later)}


@pytest.mark.parametrize(("frames", "blocks"), [(3, 1), (8, 2), (90, 5)])
def test_a_clip_gives_its_whole_blocks_as_far_as_its_shot_goes(frames: int, blocks: int) -> None:
    scene = Scene.model_validate({"shots": [{"prompt": "a", "seconds": 3, "video": "clip.mp4"}]})
    shot = plan_timeline(scene, RETRIEVING, measure=lambda path, config: frames).shots[0]
    assert (len(shot.blocks), shot.given_blocks) == (5, blocks)


def test_a_timeline_survives_its_record() -> None:
    timeline = plan_timeline(STORY, RETRIEVING, measure=one_frame)
    assert Timeline.model_validate_json(timeline.model_dump_json()) == timeline


@pytest.mark.parametrize("edges", [[(1, 2)], [(0, 2), (3, 4)], [(0, 2), (1, 4)], [(0, 2), (2, 2)]])
def test_a_damaged_record_is_refused(edges: list[tuple[int, int]]) -> None:
    content = plan_timeline(shots(3), backbone()).model_dump(mode="json")
    content["shots"] = [content["shots"][0] | {"start": start, "stop": stop} for start, stop in edges]
    with pytest.raises(ValidationError):
        Timeline.model_validate(content)


@given(st.integers(1, 400))
def test_switch_frames_fall_on_the_blocks_of_longlive(frame: int) -> None:
    """There a switch takes effect at the first block that starts at or after its frame."""
    timeline = plan_timeline(shots(frame / 4, 10), backbone())
    assert timeline.extent(timeline.shots[1]).latent_frames.start == -(-frame // 3) * 3
