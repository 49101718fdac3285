"""Timelines of other programs, each in the shape in which it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llrag_cli.errors import LlragWarning, UsageError
from llrag_cli.scenes.reading import read_scene, read_scenes
from llrag_cli.scenes.schema import Scene


def read(folder: Path, content: Any, name: str = "story.json") -> Scene:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_scene(path)


def problem(folder: Path, content: Any, name: str = "story.json") -> str:
    with pytest.raises(UsageError) as raised:
        read(folder, content, name)
    assert raised.value.hint
    return raised.value.problem


def shots(scene: Scene) -> list[tuple[str, float, bool]]:
    return [(shot.prompt, shot.seconds, shot.cut) for shot in scene.shots]


def segment(start: float, end: float, *texts: str, **more: Any) -> dict[str, Any]:
    return {"startTime": start, "endTime": end, "prompts": [{"text": text, "weight": 100} for text in texts], **more}


def test_scope(tmp_path: Path) -> None:
    settings = {"pipelineId": "longlive", "resolution": {"height": 480, "width": 832}, "seed": 42}
    content = {"prompts": [segment(0, 11.5, "a panda"), segment(11.5, 24, "it sits")], "settings": settings}
    scene = read(tmp_path, content | {"version": "2.0"})
    assert shots(scene) == [("a panda", 11.5, False), ("it sits", 12.5, False)]
    assert (scene.seed, scene.backbone) == (42, "longlive")


def test_scope_keeps_a_prompt_between_segments(tmp_path: Path) -> None:
    content = {"prompts": [segment(1, 4, "a"), segment(6, 8, "b")], "settings": {"pipelineId": "memflow"}}
    scene = read(tmp_path, content)
    assert shots(scene) == [("a", 5, False), ("b", 2, False)]
    assert scene.backbone is None


def test_scope_leaves_out_prompts_without_weight(tmp_path: Path) -> None:
    first = segment(0, 4, "a") | {"prompts": [{"text": "a", "weight": 1}, {"text": "b", "weight": 0}]}
    assert shots(read(tmp_path, {"prompts": [first, {"startTime": 4, "endTime": 6, "text": "c"}]})) == [
        ("a", 4, False),
        ("c", 2, False),
    ]


def test_scope_transitions_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(LlragWarning, match=r"`story.json`, segment 2: the prompt changes at once"):
        read(tmp_path, {"prompts": [segment(0, 4, "a"), segment(4, 8, "b", transitionSteps=4)]})


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        ([segment(0, 4, "a"), segment(3, 8, "b")], ", segment 2: starts at 3 s, before segment 1 ends at 4 s"),
        ([segment(4, 8, "a"), segment(0, 4, "b")], ", segment 2: starts at 0 s, before segment 1 ends at 8 s"),
        ([segment(4, 4, "a")], ", segment 1: ends at 4 s, not after its start at 4 s"),
        ([segment(0, 4, "a", "b")], ", segment 1: blends 2 prompts, but a shot has one"),
        ([segment(0, 4)], ", segment 1: the prompt is empty"),
        ([segment(0, 4, " ")], ", segment 1: the prompt is empty"),
        ([{"startTime": "0", "endTime": 1, "text": "a"}], ", segment 1: `startTime` must be a time in seconds"),
        ([{"startTime": -1, "endTime": 1, "text": "a"}], ", segment 1: `startTime` must be a time in seconds"),
        ([{"startTime": 0, "endTime": 1, "prompts": "a"}], ", segment 1: `prompts` must be a list of objects"),
        ([3], ", segment 1: not a JSON object"),
        ([], ": a scene needs at least one shot"),
    ],
)
def test_sentences_of_scope(tmp_path: Path, segments: list[Any], sentence: str) -> None:
    assert problem(tmp_path, {"prompts": segments}) == f"`story.json`{sentence}"


def test_longlive_and_memflow(tmp_path: Path) -> None:
    assert shots(read(tmp_path, {"prompts": ["a", "b", "c"]}, "one.jsonl")) == [
        ("a", 10, False),
        ("b", 10, False),
        ("c", 10, False),
    ]
    switched = {"prompts": ["a", "b"], "switch_frame_indices": "20", "num_output_frames": 60}
    assert shots(read(tmp_path, switched, "one.jsonl")) == [("a", 5, False), ("b", 10, False)]
    (tmp_path / "two.jsonl").write_text('{"prompts": ["a"]}\n\n{"prompts": ["b", "c"], "switch_frame_indices": [8]}\n')
    assert [len(scene.shots) for scene in read_scenes(tmp_path / "two.jsonl")] == [1, 2]
    with pytest.raises(UsageError, match=r"`two.jsonl` holds 2 scenes, but one is needed"):
        read_scene(tmp_path / "two.jsonl")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"prompts": ["a", " "]}, ", prompt 2: the prompt is empty"),
        ({"prompts": ["a", 3]}, ", prompt 2: the prompt is empty"),
        ({"prompts": ["a", "b"], "switch_frame_indices": [4, 8]}, ": 2 prompts need 1 switch frames, not 2"),
        (
            {"prompts": ["a", "b"], "switch_frame_indices": [0]},
            ": switch frames and the last frame must rise from above 0, not 0, 40",
        ),
        (
            {"prompts": ["a", "b", "c"], "switch_frame_indices": [8, 4]},
            ": switch frames and the last frame must rise from above 0, not 8, 4, 44",
        ),
        ({"prompts": ["a", "b"], "switch_frame_indices": "x"}, ": `switch_frame_indices` must be whole numbers"),
        ({"promptz": ["a", "b"]}, ": not a list of prompts"),
    ],
)
def test_sentences_of_longlive(tmp_path: Path, line: dict[str, Any], sentence: str) -> None:
    text = json.dumps({"prompts": ["x"]}) + "\n" + json.dumps(line)
    assert problem(tmp_path, text, "two.jsonl") == f"`two.jsonl`, line 2{sentence}"


def story(*scenes: Any) -> dict[str, Any]:
    return {"story_name": "The fox", "story_overview": "...", "scenes": list(scenes)}


def test_storymem(tmp_path: Path) -> None:
    first = {"scene_num": 1, "video_prompts": ["a", "b"], "first_frame_prompt": ["x", "y"], "cut": [True, False]}
    scene = read(tmp_path, story(first, {"scene_num": 2, "video_prompts": ["c"], "cut": [True]}))
    assert scene.title == "The fox"
    assert shots(scene) == [("a", 5, True), ("b", 5, False), ("c", 5, True)]


@pytest.mark.parametrize(
    ("scene", "sentence"),
    [
        (
            {"video_prompts": ["a", "b"], "cut": [True]},
            ", scene 1: `cut` must have `true` or `false` for each of its 2",
        ),
        ({"video_prompts": ["a"], "cut": ["yes"]}, ", scene 1: `cut` must have `true` or `false` for each of its 1"),
        ({"video_prompts": ["a", ""], "cut": [True, False]}, ", scene 1, prompt 2: the prompt is empty"),
        ({"cut": []}, ", scene 1: no list `video_prompts`"),
        ("a", ", scene 1: no list `video_prompts`"),
        ({"video_prompts": [], "cut": []}, ": a scene needs at least one shot"),
    ],
)
def test_sentences_of_storymem(tmp_path: Path, scene: Any, sentence: str) -> None:
    assert problem(tmp_path, story(scene)).startswith(f"`story.json`{sentence}")


def test_infinity_rope(tmp_path: Path) -> None:
    text = "a fox; it runs[10s] | a lake [7.5s#] | ice[3 s]; Fox | Lake | Ice\n\na cat[4s#]\n"
    (tmp_path / "prompts.txt").write_text(text)
    first, second = read_scenes(tmp_path / "prompts.txt")
    assert shots(first) == [("a fox; it runs", 10, False), ("a lake", 7.5, True), ("ice", 3, False)]
    assert shots(second) == [("a cat", 4, True)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a fox", ", line 1, action 1: no duration at its end"),
        ("a fox[10s] | a lake", ", line 1, action 2: no duration at its end"),
        ("a fox[10s] | [10s]", ", line 1, action 2: the prompt is empty"),
        ("a fox[10s] | a lake[10s@]", ", line 1, action 2: `@` is not supported"),
        ("a fox[0s]", ", line 1, shot 1: `seconds` must be more than 0, not `0.0`"),
        (" \n", " is empty"),
    ],
)
def test_sentences_of_infinity_rope(tmp_path: Path, text: str, sentence: str) -> None:
    assert problem(tmp_path, text, "prompts.txt") == f"`prompts.txt`{sentence}"
