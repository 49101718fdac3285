"""``llrag scene``: an example that passes its own check, exact timelines, and a schema that editors can use."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from conftest import Llrag
from forked import Outcome, run_each
from llrag_cli.scenes.example import example_scene

SCENES = {
    "seconds.yaml": """\
shots:
  - prompt: a red circle
    seconds: 1
  - prompt: a white cross
    seconds: 0
""",
    "key.yaml": """\
title: a scene
shots:
  - prompt: a red circle
    seconds: 1
    cuts: true
""",
    "remember.yaml": """\
shots:
  - name: arrival
    prompt: a red circle
    seconds: 1
  - prompt: a wall
    seconds: 1
    cut: true
    remember: [arival]
""",
    "reference.yaml": """\
references:
  mara: pictures/mara.png
shots: [{prompt: a red circle, seconds: 1}]
""",
    "syntax.yaml": """\
shots:
  - prompt: a red circle
    seconds: [1
""",
    "no-shot.yaml": "title: a scene\nshots: []\n",
}
PROBLEMS = {  # what each of these scenes is told
    "seconds.yaml": "`seconds.yaml`, line 5, shot 2: `seconds` must be more than 0, not `0`",
    "key.yaml": "`key.yaml`, line 5, shot 1: unknown key `cuts`",
    "remember.yaml": "`remember.yaml`, line 8, shot 2: `remember` names `arival`, which is neither",
    "reference.yaml": "`reference.yaml`, line 2, reference `mara`: `pictures/mara.png` does not exist",
    "syntax.yaml": "`syntax.yaml`, line 4: not valid YAML",
    "no-shot.yaml": "`no-shot.yaml`, line 2: a scene needs at least one shot",
}


def rows_of(table: str) -> list[list[str]]:
    """The cells of the lines of a printed table, without its heading; cells are two spaces apart or more."""
    lines = table.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("shot "))
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[heading + 1 :]]
    return [row for row in rows if len(row) == 7]


def test_a_new_scene_is_the_example_and_passes_the_check(llrag: Llrag, tmp_path: Path) -> None:
    written = llrag("scene", "new")
    assert (written.returncode, written.stdout) == (0, "scene.yaml\n")
    assert "`llrag generate --scene scene.yaml` generates it" in written.stderr
    assert (tmp_path / "scene.yaml").read_text() == example_scene()
    checked = llrag("scene", "check", "scene.yaml")
    assert checked.returncode == 0
    assert all(line.startswith("understood: ") and " · " not in line for line in checked.stderr.splitlines())
    named = llrag("scene", "new", "other.yaml")
    assert named.stdout == "other.yaml\n" and llrag("scene", "check", "other.yaml").returncode == 0


def test_an_existing_file_is_not_overwritten(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "scene.yaml").write_text("mine")
    refused = llrag("scene", "new")
    assert refused.returncode == 2
    assert refused.stderr == "error: `scene.yaml` already exists\n\nhint: choose another name\n"
    assert (tmp_path / "scene.yaml").read_text() == "mine"


def test_a_new_scene_needs_a_folder_that_exists(llrag: Llrag, tmp_path: Path) -> None:
    refused = llrag("scene", "new", "films/scene.yaml")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: `films/scene.yaml` could not be written: no such file or directory\n\nhint: choose another folder\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_check_prints_exact_blocks_frames_and_times(llrag: Llrag) -> None:
    """Eight frames a second, and block b begins at frame 12b - 3, so the second shot at 6 s begins at frame 45."""
    llrag("scene", "new")
    told = llrag("scene", "check", "scene.yaml").stdout
    assert told.startswith("There and back: tiny nearest, 165 frames, 20.62 s\n")
    assert rows_of(told) == [
        ["arrival", "start", "0-3", "0-44", "0.00-5.62", "arrival", "itself"],
        ["shot-2", "switch", "4-6", "45-80", "5.62-10.12", "arrival", "arrival"],
        ["elsewhere", "cut", "7-9", "81-116", "10.12-14.62", "elsewhere", "itself"],
        ["return", "cut", "10-13", "117-164", "14.62-20.62", "return", "arrival"],
    ]
    needs = told.splitlines()[-1]
    assert needs == "K/V of the window 3.15 MB; archive of K/V 5.51 MB; latents on disk 86 kB"


def test_check_has_the_same_numbers_as_json(llrag: Llrag) -> None:
    llrag("scene", "new")
    told = json.loads(llrag("scene", "check", "scene.yaml", "--json").stdout)
    assert (told["title"], told["blocks"], told["video_frames"], told["fps"]) == ("There and back", 14, 165, 8)
    keys = ("name", "begins", "blocks", "latent_frames", "video_frames", "seconds", "retrieves_from")
    assert [[shot[key] for key in keys] for shot in told["shots"]] == [
        ["arrival", "start", [0, 4], [0, 12], [0, 45], [0, 5.625], ["arrival"]],
        ["shot-2", "switch", [4, 7], [12, 21], [45, 81], [5.625, 10.125], ["arrival", "shot-2"]],
        ["elsewhere", "cut", [7, 10], [21, 30], [81, 117], [10.125, 14.625], ["elsewhere"]],
        ["return", "cut", [10, 14], [30, 42], [117, 165], [14.625, 20.625], ["arrival", "return"]],
    ]


def test_check_names_references_and_what_is_pinned(llrag: Llrag, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "mara.png")
    references = {"mara": {"path": "mara.png", "pinned": True}, "lake": "mara.png"}
    shots = [{"prompt": "a red circle", "seconds": 1, "remember": ["lake"]}]
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump({"references": references, "shots": shots}))
    told = llrag("scene", "check", "scene.yaml").stdout
    assert "reference mara: 1 latent frames, pinned\n" in told and "reference lake: 1 latent frames\n" in told
    assert rows_of(told) == [["shot-1", "start", "0-0", "0-8", "0.00-1.12", "shot-1", "lake"]]
    content = json.loads(llrag("scene", "check", "scene.yaml", "--json").stdout)
    assert [(each["name"], each["pinned"]) for each in content["references"]] == [("lake", False), ("mara", True)]
    assert content["shots"][0]["pinned"] == 0  # the shot may not remember it


def test_check_follows_the_options(llrag: Llrag) -> None:
    llrag("scene", "new")
    changed = llrag("scene", "check", "scene.yaml", "--memory", "none", "--set", "backbone.fps=16").stdout
    assert changed.startswith("There and back: tiny none, 321 frames, 20.06 s\n")
    assert {row[-1] for row in rows_of(changed)} == {"nothing (strategy `none`)"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The commands of ``llrag scene``, and the check of each wrong scene, in processes of their own."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, text in SCENES.items():
        (folder / name).write_text(text)
    (folder / "whole.yaml").write_text(example_scene())
    commands = {name: ("scene", "check", name) for name in ("whole.yaml", *SCENES)}
    before = {*folder.iterdir()}
    done = run_each(folder, {**commands, "new": ("scene", "new", "new.yaml"), "schema": ("scene", "schema")})
    assert {*folder.iterdir()} - before == {folder / "new.yaml"}
    return done


@pytest.mark.parametrize("command", ["whole.yaml", "new", "schema", *SCENES])
def test_no_command_of_scenes_imports_torch(outcomes: dict[str, Outcome], command: str) -> None:
    assert outcomes[command].code == (2 if command in SCENES else 0)
    assert not outcomes[command].imported_torch


@pytest.mark.parametrize("name", SCENES)
def test_a_wrong_scene_is_told_where_it_is_wrong(outcomes: dict[str, Outcome], name: str) -> None:
    told = outcomes[name]
    assert (told.code, told.stdout) == (2, "")
    problem, hint = told.stderr.split("\n\nhint: ")
    assert problem.startswith(f"error: {PROBLEMS[name]}")
    assert hint.strip() and "\n" not in problem


def test_the_schema_accepts_the_example_and_refuses_what_the_check_refuses(outcomes: dict[str, Outcome]) -> None:
    jsonschema = importlib.import_module("jsonschema")
    schema = json.loads(outcomes["schema"].stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def problems(content: Any) -> list[str]:
        return [error.message for error in validator.iter_errors(content)]

    assert problems(yaml.safe_load(example_scene())) == []
    for name in ("seconds.yaml", "key.yaml", "no-shot.yaml"):
        assert problems(yaml.safe_load(SCENES[name])), name
