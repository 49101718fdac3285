"""``llrag demo`` from the command to its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Llrag
from llrag_cli.runs import maker

SCENE = """
title: Short
seed: 3
shots:
  - {name: arrival, prompt: a red circle on a plain blue wall, seconds: 2}
  - {name: elsewhere, prompt: a white cross on a plain brown wall, seconds: 1, cut: true, remember: none}
  - {name: return, prompt: a shape in front of a wall, seconds: 2, cut: true, remember: [arrival]}
"""
QUICK = ("--set", "sampler.steps=[1000, 500]", "--set", "video.upscale=1")


@pytest.fixture
def demo(llrag: Llrag, tmp_path: Path) -> Llrag:
    """``llrag demo`` of a short scene, in few steps."""
    (tmp_path / "scene.yaml").write_text(SCENE)
    return lambda *arguments: llrag("demo", "--scene", "scene.yaml", *QUICK, *arguments)


def record(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "run.json").read_text())
    assert isinstance(content, dict)
    return content


def test_a_scene_is_made_twice_and_shown(demo: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = demo()
    assert done.returncode == 0, done.stderr
    root = tmp_path / "runs/short-demo"
    assert done.stdout.splitlines() == ["runs/short-demo/demo.png", "runs/short-demo/demo.html"]
    assert sorted(path.name for path in root.iterdir()) == ["demo.html", "demo.png", "memory", "native"]
    assert "the scene returns to “arrival”" in " ".join(done.stderr.split())
    native, memory = record(root / "native"), record(root / "memory")
    assert (native["config"]["memory"]["strategy"], memory["config"]["memory"]["strategy"]) == ("none", "nearest")
    assert native["seed"] == memory["seed"] == 3 and native["timeline"] == memory["timeline"]
    assert native["status"] == memory["status"] == "complete"
    used = [json.loads(line) for line in (root / "memory/memory.jsonl").read_text().splitlines()]
    assert any(block["retrieved"] for block in used)
    assert '"retrieved": [0' not in (root / "native/memory.jsonl").read_text()

    # repeated, nothing is generated again
    monkeypatch.setattr(maker, "make_video", None)
    page = (root / "demo.html").read_bytes()
    again = demo("--out", "runs/short-demo", "--json")
    assert again.returncode == 0, again.stderr
    assert (root / "demo.html").read_bytes() == page
    content = json.loads(again.stdout)
    assert content["page"] == "runs/short-demo/demo.html" and content["place"] == "arrival"
    assert content["measured"]["memory"]["wall_color"] in content["sentence"] or "its wall" in content["sentence"]
    assert content["videos"]["native"] == "runs/short-demo/native/video.mp4"

    # other settings are refused before anything is loaded
    other = demo("--out", "runs/short-demo", "--seed", "4")
    assert other.returncode == 2 and "`runs/short-demo/native` was started with other settings: `seed`" in other.stderr
    (tmp_path / "scene.yaml").write_text(SCENE.replace("seconds: 1,", "seconds: 3,"))
    assert demo("--out", "runs/short-demo").returncode == 2
    (tmp_path / "scene.yaml").write_text(SCENE.replace("seconds: 2}", "seconds: 1}"))  # of the first shot
    assert demo("--out", "runs/short-demo").returncode == 2


def test_an_interrupted_demo_continues(demo: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = demo("--out", "whole")
    assert whole.returncode == 0, whole.stderr
    made = maker.make_video

    def stopping(*arguments: Any, on_progress: Any, **options: Any) -> Any:
        def stop(progress: Any) -> None:
            on_progress(progress)
            if progress.retrieved:  # in the second video
                raise KeyboardInterrupt

        return made(*arguments, on_progress=stop, **options)

    monkeypatch.setattr(maker, "make_video", stopping)
    stopped = demo("--out", "parts")
    assert stopped.returncode == 130
    assert "the same command with `--out parts` continues from here" in " ".join(stopped.stderr.split())
    monkeypatch.setattr(maker, "make_video", made)
    assert record(tmp_path / "parts/memory")["status"] == "interrupted"
    (tmp_path / "parts/demo.html.7.partial").write_text("half")  # as if it was killed while its page was written
    done = demo("--out", "parts")
    assert done.returncode == 0, done.stderr
    for file in ("native/video.mp4", "memory/video.mp4", "memory/memory.jsonl", "demo.png", "demo.html"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_reference_is_left_out_without_memory(llrag: Llrag, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 125, 185)).save(tmp_path / "wall.png")
    scene = "references: {wall: wall.png}\nshots: [{prompt: a red circle, seconds: 1, remember: [wall]}]\n"
    (tmp_path / "scene.yaml").write_text(scene)
    done = llrag("demo", "--scene", "scene.yaml", *QUICK, "--out", "demo")
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "demo/native")["timeline"]["references"] == []
    page = (tmp_path / "demo/demo.html").read_text()
    assert "left out of the video without memory: wall" in page and "Nothing else differs" not in page

    replaced = llrag("demo", "--scene", "scene.yaml", *QUICK, "--out", "demo", "--seed", "4", "--force")
    assert replaced.returncode == 0, replaced.stderr
    assert record(tmp_path / "demo/native")["seed"] == record(tmp_path / "demo/memory")["seed"] == 4
