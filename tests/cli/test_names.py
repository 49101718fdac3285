"""Folders of any name: what is written and read there, also by ffmpeg, has that name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import Llrag
from llrag_cli.evaluation.grid import Case, backbone_folder
from llrag_cli.files.ffmpeg import file_url
from llrag_cli.runs.export import count_frames

FEW = ("--set", "sampler.steps=[1000]", "--set", "video.upscale=1", "--backbone", "tiny")
NAMES = ["-dash", "pink:7 [x] %03d a b'c\"d", "new\nline n\u00fbmero \u4e03 \U0001f3ac :cat: a?b#c*|\\"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_may_have_any_name(llrag: Llrag, tmp_path: Path, name: str) -> None:
    def call(*arguments: str) -> str:
        done = llrag(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("generate", "a red circle", "--seconds", "1", f"--out={name}", *FEW) == f"{name}/video.mp4\n"
    call("generate", f"--resume={name}", "--seconds", "2")
    call("extend", "--seconds", "1", "--prompt", "a green square", "--", name)
    frames = json.loads((tmp_path / name / "run.json").read_text())["video_frames_written"]
    assert count_frames(Path(name) / "video.mp4") == frames
    assert call("inspect", "--", name).endswith(f"{name}/memory.png\n{name}/memory.html\n")
    exported = call("export", "--", name)
    assert f"{name}/export/video.mp4\n" in exported and f"{name}/export/timeline.otio\n" in exported
    assert count_frames(Path(name) / "export/video.mp4") == frames
    scored = json.loads(call("bench", "score", "--strict", "--json", "--", f"{name}/video.mp4"))
    assert [video["video"] for video in scored["videos"]] == [f"{name}/video.mp4"]
    clip = f"{name}/export/video.mp4"
    call("generate", "a white cross", f"--video={clip}", "--seconds", "5", f"--out={name}/next", *FEW)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing beside it


def test_other_results_may_have_any_name(llrag: Llrag, tmp_path: Path) -> None:
    name = "-2026-11-28T17:54:00[/x]"
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    for arguments in (
        ("generate", "a red circle", "--takes", "2", "--seconds", "1", f"--out={name}/takes", *FEW),
        ("collect", "prompts.txt", "--seconds", "1", "--preview", f"--out={name}/latents", *FEW),
        (
            "bench",
            "--count",
            "1",
            "--horizon",
            "2",
            "--memory",
            "none",
            "--memory",
            "random",
            f"--out={name}/bench",
            *FEW,
        ),
        ("bench", "score", "--strict", "--", f"{name}/bench/videos"),
    ):
        done = llrag(*arguments)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{name}/bench/videos/tiny") == 2, done.stdout
    assert not list(tmp_path.rglob("*.partial"))


def test_ffmpeg_is_given_absolute_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert file_url(Path("pink:7/video.mp4")) == f"file:{tmp_path}/pink:7/video.mp4"


def test_the_folders_of_a_benchmark_are_inside_it() -> None:
    assert backbone_folder("tiny") == "tiny"
    assert backbone_folder("presets/my_model.v2.yaml") == "my_model.v2"
    strange = [
        "...yaml",
        "..",
        "x/...yml",
        "/",
        "a/..b.yaml",
        "-x.yaml",
        "\u4e03.yaml",
        "\u516b.yaml",
        "a:b.yaml",
        "a?b.yaml",
    ]
    names = [backbone_folder(name) for name in strange]
    assert len(set(names)) == len({Path(name).name.removesuffix(".yaml").removesuffix(".yml") for name in strange})
    for name in names:
        assert (
            name
            and not name.startswith((".", "-"))
            and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        )
        folder = Case(name, "none", 1, "a cat", 0).folder(Path("bench"))
        assert folder.parts[:3] == ("bench", "videos", name)


@pytest.mark.parametrize("name", ["...yaml", "pink:7[bold].yaml"])
def test_a_backbone_file_of_any_name_stays_in_the_benchmark(llrag: Llrag, tmp_path: Path, name: str) -> None:
    from llrag_cli.presets import presets_folder

    shutil.copy(presets_folder() / "tiny.yaml", tmp_path / name)
    (tmp_path / "in").mkdir()
    done = llrag(
        *(
            "bench",
            "--backbone",
            f"./{name}",
            "--count",
            "1",
            "--horizon",
            "2",
            "--memory",
            "none",
            "--memory",
            "random",
        ),
        *("--out", "in/b", *FEW[:4]),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "in"])
    assert len(list((tmp_path / "in/b/videos").glob("*/none/*/video.mp4"))) == 1
