"""Scenes that are generated, extended and exported by commands: exact frames, records, own footage and takes."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import Done, Llrag, call_llrag
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.runs.video import read_video

RED = "a red circle bounces around in front of a blue wall"
GREEN = "a green square bounces around in front of a blue wall"
WHITE = "a white cross orbits in front of a gray wall"
FEW = ("--set", "sampler.steps=[1000]", "--set", "video.upscale=1")
SCENE = f"""\
title: There and back
seed: 5
set: {{sampler.steps: [1000], video.upscale: 1}}
shots:
  - {{name: arrival, prompt: {RED}, seconds: 2}}
  - {{prompt: {GREEN}, seconds: 1.5}}
  - {{name: away, prompt: {WHITE}, seconds: 1.5, cut: true, remember: none, seed: 9}}
  - {{name: return, prompt: two shapes in front of a wall, seconds: 1.5, cut: true, remember: [arrival]}}
"""
SPANS = {"arrival": (0, 21), "shot-2": (21, 33), "away": (33, 45), "return": (45, 57)}  # video frames at 8 a second


def generated(folder: Path, *arguments: str) -> Done:
    """A command that succeeds."""
    done = call_llrag(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def record_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def memory_in(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "memory.jsonl").read_text().splitlines()]


def latents_in(run: Path) -> Tensor:
    """Latents [T, C, h, w] of a run."""
    return load_file(run / "latents.safetensors")["latents"]


def shots_in(run: Path) -> list[tuple[Any, ...]]:
    """Name, kind, first block and the block after the last of each shot."""
    shots = record_in(run)["timeline"]["shots"]
    return [(shot["name"], shot["kind"], shot["start"], shot["stop"]) for shot in shots]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``scene``, one block of its third shot in ``away``, a clip and a picture."""
    films = tmp_path_factory.mktemp("films")
    (films / "scene.yaml").write_text(SCENE)
    generated(films, "generate", "--scene", "scene.yaml", "--out", "scene")
    generated(films, "generate", WHITE, "--seconds", "1", "--seed", "9", *FEW, "--out", "away")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(films / "mara.png")
    pictures = np.full((30, 80, 80, 3), (40, 48, 208), np.uint8)  # a red square moves over a blue wall
    for number, picture in enumerate(pictures):
        picture[30:54, 4 + number : 28 + number] = (208, 32, 32)
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "80x80", "-r", "16", "-i", "-")
    quality = ("-c:v", "libx264", "-crf", "4", "-pix_fmt", "yuv420p")
    command = [ffmpeg(), "-v", "error", *raw, *quality, str(films / "clip.mp4")]
    subprocess.run(command, input=pictures.tobytes(), check=True)
    return films


def test_a_scene_has_exactly_its_frames(films: Path) -> None:
    record = record_in(films / "scene")
    assert (record["status"], record["title"], record["seed"]) == ("complete", "There and back", 5)
    assert record["video_frames"] == record["video_frames_written"] == len(read_video(films / "scene/video.mp4")) == 57
    assert record["latent_frames"] == len(latents_in(films / "scene")) == 15


def test_the_record_of_a_scene_has_its_timeline(films: Path) -> None:
    assert shots_in(films / "scene") == [
        ("arrival", "start", 0, 2),
        ("shot-2", "switch", 2, 3),
        ("away", "cut", 3, 4),
        ("return", "cut", 4, 5),
    ]
    shots = record_in(films / "scene")["timeline"]["shots"]
    assert [shot["remember"] for shot in shots] == ["all", "all", "none", ["arrival"]]
    assert [shot["sink"] for shot in shots] == ["arrival", "arrival", "away", "return"]
    assert [shot["seed"] for shot in shots] == [None, None, 9, None]
    assert record_in(films / "scene")["config"]["sampler"]["steps"] == [1000]  # `set` of the scene


def test_the_memory_of_a_scene_names_its_sources(films: Path) -> None:
    blocks = memory_in(films / "scene")
    assert [block["frame"] for block in blocks] == [0, 3, 6, 9, 12]
    assert blocks[3]["retrieved"] == []  # `remember: none`
    assert len(blocks[4]["retrieved"]) == 4 and blocks[4]["sources"] == ["arrival"] * 4
    assert {*blocks[4]["retrieved"]} <= {*range(6)}


def test_a_shot_that_remembers_nothing_is_the_video_of_its_prompt_and_seed(films: Path) -> None:
    assert torch.equal(latents_in(films / "scene")[9:12], latents_in(films / "away"))


def test_shots_without_a_file_are_those_of_the_file(films: Path) -> None:
    then = ("--then", f"1.5s: {GREEN}", "--then", f"cut 1.5s: {WHITE}")
    generated(films, "generate", RED, "--seconds", "2", "--seed", "5", *FEW, *then, "--out", "then")
    assert shots_in(films / "then") == [("shot-1", "start", 0, 2), ("shot-2", "switch", 2, 3), ("shot-3", "cut", 3, 4)]
    assert [shot["prompt"] for shot in record_in(films / "then")["timeline"]["shots"]] == [RED, GREEN, WHITE]
    assert len(read_video(films / "then/video.mp4")) == 45
    assert torch.equal(latents_in(films / "then")[:9], latents_in(films / "scene")[:9])
    cut = memory_in(films / "then")[3]
    assert cut["retrieved"] and {*cut["sources"]} <= {"shot-1", "shot-2"}  # it remembers all


def test_a_switch_and_a_cut_begin_with_the_same_frames_and_go_on_differently(films: Path) -> None:
    for kind, then in (("switch", f"1s: {WHITE}"), ("cut", f"cut 1s: {WHITE}")):
        arguments = (RED, "--seconds", "2", *FEW, "--then", then, "--out", kind)
        assert generated(films, "generate", *arguments).stdout == f"{kind}/video.mp4\n"
        assert shots_in(films / kind)[1] == ("shot-2", kind, 2, 3)
    switch, cut = latents_in(films / "switch"), latents_in(films / "cut")
    assert torch.equal(switch[:6], cut[:6])
    assert (switch[6:] - cut[6:]).abs().mean() > 0.05


def red_centre(frames: Tensor) -> Tensor:
    """Where the red of each frame [T, 3, H, W] is, from left to right."""
    red = (frames[:, 0] > frames[:, 2]).float()  # [T, H, W]
    return (red * torch.arange(float(frames.shape[-1]))).sum(dim=(1, 2)) / red.sum(dim=(1, 2)).clamp(min=1)


def test_a_clip_opens_the_video(films: Path) -> None:
    """A clip of 1.9 s at 16 frames a second is 15 frames at 8: one whole block of 9."""
    generated(films, "generate", RED, "--seconds", "2", *FEW, "--video", "clip.mp4", "--out", "footage")
    (shot,) = record_in(films / "footage")["timeline"]["shots"]
    assert (shot["given_blocks"], shot["stop"], shot["video"]) == (1, 2, str(films / "clip.mp4"))
    assert [block["frame"] for block in memory_in(films / "footage")] == [0, 3]
    video, clip = read_video(films / "footage/video.mp4"), read_video(films / "clip.mp4")[::2]
    assert len(video) == 21
    shown = torch.nn.functional.interpolate(video[:9], size=(80, 80), mode="area")
    assert (shown - clip[:9]).abs().mean() < 0.12  # what the embedded VAE makes of a picture it was not trained on
    assert (red_centre(shown) - red_centre(clip[:9])).abs().max() < 1.5  # pixels, of 16 that the square moves


def test_a_picture_and_a_run_are_retrieved_from(films: Path) -> None:
    references = ("--reference", "house=away", "--reference", "mara=mara.png")
    generated(films, "generate", RED, "--seconds", "1", *FEW, *references, "--out", "references")
    recorded = record_in(films / "references")["timeline"]["references"]
    assert [(each["name"], each["path"], each["pinned"], each["latent_frames"]) for each in recorded] == [
        ("house", str(films / "away"), False, 3),
        ("mara", str(films / "mara.png"), False, 1),
    ]
    (block,) = memory_in(films / "references")
    names = dict(zip(block["retrieved"], block["sources"], strict=True))
    assert names == {-4: "house", -3: "house", -2: "house", -1: "mara"}


def test_a_pinned_picture_is_attended_and_not_retrieved(films: Path) -> None:
    house = ("--reference", "house=away")
    generated(films, "generate", RED, "--seconds", "1", *FEW, *house, "--out", "house")
    pinned = ("--reference", "mara=mara.png", *house, "--pin", "mara")
    generated(films, "generate", RED, "--seconds", "1", *FEW, *pinned, "--out", "pinned")
    recorded = record_in(films / "pinned")["timeline"]["references"]
    assert [(each["name"], each["pinned"]) for each in recorded] == [("house", False), ("mara", True)]
    (block,) = memory_in(films / "pinned")
    assert sorted(block["retrieved"]) == [-4, -3, -2] and block["sources"] == ["house"] * 3
    assert not torch.equal(latents_in(films / "pinned"), latents_in(films / "house"))


@pytest.fixture(scope="module")
def takes(films: Path) -> tuple[Path, list[str]]:
    """The folder of two takes of a scene, and what was printed."""
    text = SCENE.replace("seed: 5\n", "seed: 5\ntakes: 2\n").replace(", seed: 9", "")
    (films / "takes.yaml").write_text(text)
    done = generated(films, "generate", "--scene", "takes.yaml", "--out", "takes")
    return films / "takes", done.stdout.splitlines()


def test_takes_are_runs_with_a_contact_sheet(takes: tuple[Path, list[str]]) -> None:
    root, printed = takes
    assert sorted(path.name for path in root.iterdir()) == ["take-1", "take-2", "takes.html", "takes.png"]
    assert [record_in(root / name)["seed"] for name in ("take-1", "take-2")] == [5, 6]
    assert [len(read_video(root / name / "video.mp4")) for name in ("take-1", "take-2")] == [57, 57]
    assert printed[2:] == ["takes/takes.png", "takes/takes.html"]
    assert {line.split()[0] for line in printed[:2]} == {"takes/take-1/video.mp4", "takes/take-2/video.mp4"}
    with Image.open(root / "takes.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 4 * 256 and sheet.height > 2 * 256
    page = (root / "takes.html").read_text()
    for text in ("There and back", "take 1 · seed 5", "take 2 · seed 6", *SPANS):
        assert text in page


def test_takes_are_printed_by_drift(takes: tuple[Path, list[str]]) -> None:
    drifts = [float(line.rpartition("drift ")[2]) for line in takes[1][:2]]
    assert drifts == sorted(drifts) and drifts[0] < drifts[1]


@pytest.mark.parametrize(("take", "seed"), [("take-1", "5"), ("take-2", "6")])
def test_a_take_is_the_run_of_its_seed(films: Path, takes: tuple[Path, list[str]], take: str, seed: str) -> None:
    """A batch is computed together, so latents may differ by rounding; what was retrieved may not."""
    alone, take_folder = films / f"alone-{seed}", takes[0] / take
    generated(films, "generate", "--scene", "takes.yaml", "--takes", "1", "--seed", seed, "--out", alone.name)
    torch.testing.assert_close(latents_in(take_folder), latents_in(alone), atol=1e-4, rtol=0)
    for one, other in zip(memory_in(take_folder), memory_in(alone), strict=True):
        assert one["retrieved"] == other["retrieved"] and one.get("sources") == other.get("sources")
    assert (read_video(take_folder / "video.mp4") - read_video(alone / "video.mp4")).abs().mean() < 1e-3
    assert record_in(take_folder)["timeline"] == record_in(alone)["timeline"]


def test_finished_takes_are_only_shown_again(
    llrag: Llrag, takes: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues takes; without the extra `metrics` they are not ranked."""
    for name in ("takes.yaml", "takes"):
        source = takes[0].parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    before = {path: path.read_bytes() for path in (tmp_path / "takes").glob("take-?/*") if path.is_file()}
    monkeypatch.setattr("llrag_cli.evaluation.takes.offline_features", lambda: None)
    done = llrag("generate", "--scene", "takes.yaml", "--out", "takes", "--json")
    assert done.returncode == 0, done.stderr
    assert "takes are not ranked: that needs the extra `metrics`" in " ".join(done.stderr.split())
    told = json.loads(done.stdout)
    assert (told["picture"], told["page"]) == ("takes/takes.png", "takes/takes.html")
    assert [(take["folder"], take["drift"]) for take in told["takes"]] == [
        ("takes/take-1", None),
        ("takes/take-2", None),
    ]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("kind", ["cut", "switch"])
def test_a_run_is_extended_by_a_new_shot(llrag: Llrag, films: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(films / "scene", tmp_path / "run")
    cut = ["--cut"] if kind == "cut" else []
    done = llrag("extend", "run", "--seconds", "1.5", "--prompt", WHITE, *cut)
    assert (done.returncode, done.stdout) == (0, "run/video.mp4\n"), done.stderr
    record = record_in(tmp_path / "run")
    assert shots_in(tmp_path / "run") == [*shots_in(films / "scene"), ("shot-5", kind, 5, 6)]
    assert record["timeline"]["shots"][4]["prompt"] == WHITE
    assert (
        record["status"] == "complete" and record["video_frames"] == len(read_video(tmp_path / "run/video.mp4")) == 69
    )
    assert torch.equal(latents_in(tmp_path / "run")[:15], latents_in(films / "scene"))
    block = memory_in(tmp_path / "run")[5]
    assert block["retrieved"] and {*block["sources"]} <= {*SPANS}


def chapters_of(video: Path) -> list[tuple[str, float, float]]:
    """Title, start and end of each chapter, in frames at 8 a second."""
    arguments = ("-v", "error", "-i", str(video), "-f", "ffmetadata", "-")
    text = subprocess.run([ffmpeg(), *arguments], capture_output=True, check=True, encoding="utf-8").stdout
    pattern = r"\[CHAPTER\]\nTIMEBASE=(\d+)/(\d+)\nSTART=(\d+)\nEND=(\d+)\ntitle=(.*)\n"
    found = re.findall(pattern, text)
    return [(title, *(8 * int(time) * int(one) / int(unit) for time in ends)) for one, unit, *ends, title in found]


@pytest.fixture(scope="module")
def exported(films: Path) -> Path:
    printed = generated(films, "export", "scene", "--out", "shots", "--no-timeline").stdout
    names = ["video.mp4", "01-arrival.mp4", "02-shot-2.mp4", "03-away.mp4", "04-return.mp4"]
    assert printed.splitlines() == [f"shots/{name}" for name in names]
    return films / "shots"


def test_each_shot_is_exported_with_exactly_its_frames(films: Path, exported: Path) -> None:
    whole = read_video(films / "scene/video.mp4")
    for number, (name, (start, stop)) in enumerate(SPANS.items(), start=1):
        shot = read_video(exported / f"{number:02d}-{name}.mp4")
        assert len(shot) == stop - start
        assert (shot - whole[start:stop]).abs().mean() < 0.02  # encoded a second time


def test_the_exported_video_has_a_chapter_for_each_shot(films: Path, exported: Path) -> None:
    assert torch.equal(read_video(exported / "video.mp4"), read_video(films / "scene/video.mp4"))
    chapters = [
        (name, pytest.approx(start, abs=0.01), pytest.approx(stop, abs=0.01)) for name, (start, stop) in SPANS.items()
    ]
    assert chapters_of(exported / "video.mp4") == chapters
    assert chapters_of(films / "scene/video.mp4") == []


def test_the_timeline_for_editing_programs_has_the_shots(llrag: Llrag, films: Path, tmp_path: Path) -> None:
    otio = importlib.import_module("opentimelineio")
    done = llrag("export", str(films / "scene"), "--out", "edit")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "edit/timeline.otio", done.stderr
    timeline = otio.adapters.read_from_file(str(tmp_path / "edit/timeline.otio"))
    (track,) = timeline.tracks
    assert [clip.name for clip in track] == [*SPANS]
    for clip, (start, stop) in zip(track, SPANS.values(), strict=True):
        assert (tmp_path / "edit" / clip.media_reference.target_url).is_file()
        assert (clip.source_range.duration.value, clip.source_range.duration.rate) == (stop - start, 8)
        assert timeline.range_of_child(clip).start_time.value == start
    seeds = [clip.metadata["llrag"]["seed"] for clip in track]
    assert seeds == [5, 5, 9, 5]
