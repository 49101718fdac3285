"""A scene that contradicts itself does not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llrag_cli.scenes.schema import Reference, Scene, Shot, scene_json_schema


def shot(prompt: str = "a fox", seconds: float = 4, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seconds": seconds, **more}


def scene(*shots: dict[str, Any], **more: Any) -> Scene:
    return Scene.model_validate({"shots": shots or [shot()], **more})


def test_shots_have_names_by_position() -> None:
    assert scene(shot(), shot(name="arrival"), shot()).names == ("shot-1", "arrival", "shot-3")


def test_the_style_goes_before_each_prompt() -> None:
    assert scene(shot("a  fox\n runs"), style="35mm, soft light, ").prompt(0) == "35mm, soft light, a fox runs"
    assert scene(shot("a fox")).prompt(0) == "a fox"


def test_settings_are_nested_or_dotted() -> None:
    made = scene(**{"set": {"memory.retrieved": 4, "video": {"crf": 12}, "sampler": {"steps": [1000, 500]}}})
    assert made.settings == ("memory.retrieved=4", "video.crf=12", "sampler.steps=[1000, 500]")


def test_a_reference_may_be_a_path_alone() -> None:
    made = scene(references={"mara": "mara.png", "house": {"path": "runs/a", "pinned": True}})
    assert made.references["mara"] == Reference(path=Path("mara.png"))
    assert made.references["house"].pinned


def test_a_scene_survives_json() -> None:
    made = scene(shot(), shot(cut=True, remember=["mara", "shot-1"]), references={"mara": "mara.png"}, seed=3)
    assert Scene.model_validate_json(made.model_dump_json()) == made


def test_the_scene_opens_with_one_picture() -> None:
    opened = scene(shot(), shot(cut=True, video="b.mp4"), image="a.png")
    assert [opened.opening(index) for index in (0, 1)] == [(Path("a.png"), None), (None, Path("b.mp4"))]
    with pytest.raises(ValidationError, match="more than one picture or clip opens the scene"):
        scene(shot(video="a.mp4"), image="a.png")


def test_a_cut_as_first_shot_is_harmless() -> None:
    assert scene(shot(cut=True, sink="keep")).shots[0].cut


@pytest.mark.parametrize("name", ["a", "Mara", "shot 2b", "x.y-z_1", "école", "a" * 64])
def test_names(name: str) -> None:
    assert scene(shot(name=name)).names == (name,)


@pytest.mark.parametrize("name", ["", " a", "a ", "a/b", "..", "a,b", "a=b", "a\n", "-a", "a" * 65, "all", "none"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValidationError, match=r"cannot be a name|is reserved"):
        scene(shot(name=name))
    with pytest.raises(ValidationError, match=r"cannot be a name|is reserved"):
        scene(references={name: "a.png"})


def test_all_problems_are_reported_each_at_its_place() -> None:
    with pytest.raises(ValidationError) as raised:
        scene(shot(name="a", remember=["b"]), shot(name="a", sink="drop", image="a.png"))
    assert [error["loc"] for error in raised.value.errors()] == [
        ("shots", 1, "name"),
        ("shots", 0, "remember"),
        ("shots", 1, "image"),
        ("shots", 1, "sink"),
    ]


def test_a_home_folder_that_is_nobodys_is_left_as_it_is() -> None:
    assert scene(shot(), image="~nobody-at-all/a.png").image == Path("~nobody-at-all/a.png")
    assert scene(shot(), image="~/a.png").image == Path.home() / "a.png"


def test_of_many_problems_the_first_twenty_are_reported() -> None:
    with pytest.raises(ValidationError) as raised:
        scene(*(shot(remember=[f"shot {number}"]) for number in range(30)))
    assert [error["loc"][1] for error in raised.value.errors()] == [*range(20)]


def test_the_schema_is_for_editors() -> None:
    schema = json.loads(json.dumps(scene_json_schema()))
    assert schema["title"] == "llrag scene"
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Scene.model_fields)
    for model in (schema, *schema["$defs"].values()):
        for part in model.get("properties", {}).values():
            assert "description" in part
    assert {branch["type"] for branch in schema["$defs"]["Reference"]["anyOf"]} == {"string", "object"}
    assert schema["$defs"]["Shot"]["required"] == ["prompt", "seconds"]


def test_every_field_is_described() -> None:
    for model in (Scene, Shot, Reference):
        assert all(field.description for field in model.model_fields.values())
