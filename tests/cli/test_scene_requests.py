"""Scenes, references and clips that cannot be generated: one sentence and a hint, before torch is imported."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from PIL import Image

from forked import Outcome, run_each
from llrag_cli.files.ffmpeg import ffmpeg

X = "a red circle"
SECONDS_HINT = "`seconds`: length in seconds, rounded to whole blocks"
THEN_HINT = "for example `8s: it stops and looks up` or `cut 6s: a frozen lake`"
FRAMEWISE = "`tiny` generates blocks of 3 latent frames, so it cannot start from one picture"
FRAMEWISE_HINT = "use a frame-wise backbone, for example `causal-forcing-framewise`"
SCENES = {
    "whole.yaml": "shots: [{prompt: a red circle, seconds: 1}]",
    "zero.yaml": "shots:\n  - prompt: a red circle\n    seconds: 0\n",
    "empty.yaml": "",
    "no-shot.yaml": "shots: []",
    "unknown.yaml": "shots:\n  - {prompt: x, seconds: 1}\n  - {prompt: x, seconds: 1, remember: [shot-11]}\n",
    "picture.yaml": "shots: [{prompt: a red circle, seconds: 1, image: red.png}]",
    "clip.yaml": "shots: [{prompt: a red circle, seconds: 1, video: clip.mp4}]",
}
REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {  # a command line, its sentence and its hint
    "zero seconds": (
        ("generate", X, "--seconds", "0", "--then", "1s: a white cross"),
        "the first shot: `seconds` must be more than 0, not `0.0`",
        SECONDS_HINT,
    ),
    "zero seconds of takes": (
        ("generate", X, "--seconds", "0", "--takes", "2", "--out", "takes"),
        "a video cannot last 0 seconds",
        "its length is more than 0 and at most 1e+07 s",
    ),
    "zero seconds in a file": (
        ("generate", "--scene", "zero.yaml"),
        "`zero.yaml`, line 3, shot 1: `seconds` must be more than 0, not `0`",
        SECONDS_HINT,
    ),
    "zero seconds of a storyboard": (
        ("storyboard", "zero.yaml"),
        "`zero.yaml`, line 3, shot 1: `seconds` must be more than 0, not `0`",
        SECONDS_HINT,
    ),
    "zero seconds of a later shot": (
        ("generate", X, "--then", "0s: a white cross"),
        "`0s: a white cross`: `seconds` must be more than 0, not `0.0`",
        SECONDS_HINT,
    ),
    "a later shot without a length": (
        ("generate", X, "--then", "a white cross"),
        "`a white cross` is not `SECONDS: PROMPT`",
        THEN_HINT,
    ),
    "a later shot without a unit": (
        ("generate", X, "--then", "cut 6: a white cross"),
        "`cut 6: a white cross` is not `SECONDS: PROMPT`",
        THEN_HINT,
    ),
    "a later shot without a prompt": (
        ("generate", X, "--then", "cut 6s: "),
        "`cut 6s: `: the prompt is empty",
        "describe what the shot shows",
    ),
    "empty scene file": (("generate", "--scene", "empty.yaml"), "`empty.yaml` is empty", "write at least one key"),
    "scene without a shot": (
        ("generate", "--scene", "no-shot.yaml"),
        "`no-shot.yaml`, line 1: a scene needs at least one shot",
        "write `shots:`, each with `prompt` and `seconds`",
    ),
    "missing scene file": (
        ("generate", "--scene", "no.yaml"),
        "scene file `no.yaml` does not exist",
        "check the path",
    ),
    "unknown shot to remember": (
        ("generate", "--scene", "unknown.yaml", "--out", "run"),
        "`unknown.yaml`, line 3, shot 2: `remember` names `shot-11`, which is neither a shot nor a reference",
        "did you mean `shot-1`?",
    ),
    "prompt and scene": (
        ("generate", X, "--scene", "whole.yaml"),
        "a prompt and `--scene` cannot be combined",
        "write it into `whole.yaml`",
    ),
    **{
        f"{option} and scene": (
            ("generate", "--scene", "whole.yaml", option, value),
            f"`{option}` and `--scene` cannot be combined",
            "write it into `whole.yaml`",
        )
        for option, value in (("--seconds", "3"), ("--then", "1s: x"), ("--image", "red.png"), ("--video", "clip.mp4"))
    },
    "prompts and scene": (
        ("generate", "--scene", "whole.yaml", "--prompts", "notes.txt"),
        "`--scene` and `--prompts` cannot be combined",
        "generate the scenes one by one",
    ),
    "scene of a run": (
        ("generate", "--scene", "whole.yaml", "--resume", "run"),
        "`--scene` cannot be combined with `--resume`",
        "a run keeps its shots; `llrag extend --prompt` adds one",
    ),
    "text as a reference": (
        ("generate", X, "--reference", "mara=notes.txt", "--out", "run"),
        "`FOLDER/notes.txt` cannot be read as a video: it is not a video, or is damaged",
        "choose a video file, such as MP4, MOV, WebM or GIF",
    ),
    "text named as a picture": (
        ("generate", X, "--reference", "mara=notes.png"),
        "`FOLDER/notes.png` cannot be read: it is not an image",
        "choose a PNG, JPEG or WebP file",
    ),
    "folder as a reference": (
        ("generate", X, "--reference", "mara=films"),
        "`FOLDER/films` is not a run: it has no `run.json` and `latents.safetensors`",
        "a reference is a picture, a clip, or the folder of a finished run",
    ),
    "missing reference": (
        ("generate", X, "--reference", "mara=no.png"),
        "`no.png` does not exist",
        "check the path",
    ),
    "reference without a name": (
        ("generate", X, "--reference", "red.png"),
        "`--reference red.png` is not `NAME=FILE`",
        "for example `mara=pictures/mara.png`",
    ),
    "reserved name": (
        ("generate", X, "--reference", "all=red.png"),
        "`all` is reserved: it is a choice of `remember`",
        "choose another name",
    ),
    "one name for two references": (
        ("generate", X, "--reference", "mara=red.png", "--reference", "mara=clip.mp4"),
        "the reference `mara` is given twice",
        "choose another name",
    ),
    "reference without retrieval": (
        ("generate", X, "--reference", "mara=red.png", "--no-rag"),
        "the reference `mara` would be retrieved, but the memory strategy is `none`",
        "choose a strategy that retrieves, for example `nearest`, or set `pinned: true`",
    ),
    "pin without a reference": (
        ("generate", X, "--pin", "mara"),
        "`--pin mara` names no reference",
        "give it with `--reference mara=FILE`",
    ),
    "more pinned than fits": (
        ("generate", X, "--reference", "film=clip.mp4", "--pin", "film"),
        "5 frames of references are pinned for `shot-1`, but a block has room for 4",
        "pin pictures, which have one frame each, or leave out `pinned`, so that frames are retrieved",
    ),
    "picture for a chunk-wise backbone": (("generate", X, "--image", "red.png"), FRAMEWISE, FRAMEWISE_HINT),
    "picture before a later shot": (
        ("generate", X, "--image", "red.png", "--then", "1s: x"),
        FRAMEWISE,
        FRAMEWISE_HINT,
    ),
    "picture in a file": (("generate", "--scene", "picture.yaml"), FRAMEWISE, FRAMEWISE_HINT),
    "picture of a storyboard": (("storyboard", "picture.yaml", "--out", "board"), FRAMEWISE, FRAMEWISE_HINT),
    "picture and clip": (
        ("generate", X, "--image", "red.png", "--video", "clip.mp4"),
        "`--image` and `--video` both open the video",
        "give one of them",
    ),
    "clip as long as the video": (  # 9 frames are one block
        ("generate", X, "--video", "block.mp4", "--seconds", "1.125"),
        "the clip fills all of the 1.1 s, so there is nothing to generate",
        "its length counts in the length of the video: give more `--seconds`",
    ),
    "clip longer than the video": (
        ("generate", X, "--video", "clip.mp4", "--seconds", "1", "--out", "run"),
        "the clip fills all of the 1.1 s, so there is nothing to generate",
        "its length counts in the length of the video: give more `--seconds`",
    ),
    "clip as long as the shot of a file": (
        ("generate", "--scene", "clip.yaml"),
        "the clip fills all of the 1.1 s, so there is nothing to generate",
        "its length counts in the length of the video: give the shot more `seconds` in `clip.yaml`",
    ),
    "clip shorter than a block": (
        ("generate", X, "--video", "short.mp4", "--seconds", "3"),
        "`short.mp4` is too short: it holds 2 of the 3 latent frames of a block",
        "a clip of at least 1.12 s is needed",
    ),
    "text as a clip": (
        ("generate", X, "--video", "notes.txt"),
        "`FOLDER/notes.txt` cannot be read as a video: it is not a video, or is damaged",
        "choose a video file, such as MP4, MOV, WebM or GIF",
    ),
    "missing clip": (("generate", X, "--video", "no.mp4"), "`no.mp4` does not exist", "check the path"),
    "cut without a prompt": (
        ("extend", "run", "--cut"),
        "`--cut` begins a new picture, which needs a prompt",
        "say with `--prompt` what it shows",
    ),
    "export of no run": (
        ("export", "films", "--out", "shots"),
        "`films` is not a run folder: it has no run.json",
        "give a folder that `llrag generate` created",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scene files, a picture, clips of 17, 9 and 5 frames, and text."""
    folder = tmp_path_factory.mktemp("requests")
    (folder / "films").mkdir()
    for name, text in {**SCENES, "notes.txt": "no picture\n", "notes.png": "no picture\n"}.items():
        (folder / name).write_text(text)
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    for name, frames in (("clip.mp4", 17), ("block.mp4", 9), ("short.mp4", 5)):
        source = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=8", "-frames:v", str(frames))
        subprocess.run([ffmpeg(), "-v", "error", *source, str(folder / name)], check=True)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    """How each command ended."""
    before = sorted(folder.rglob("*"))
    done = run_each(folder, {name: arguments for name, (arguments, _, _) in REFUSED.items()})
    assert sorted(folder.rglob("*")) == before  # neither a run nor a folder for one
    return done


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_one_sentence_and_a_hint(outcomes: dict[str, Outcome], folder: Path, name: str) -> None:
    _, problem, hint = REFUSED[name]
    outcome = outcomes[name]
    assert outcome.stderr == f"error: {problem}\n\nhint: {hint}\n".replace("FOLDER", str(folder))
    assert (outcome.code, outcome.stdout, outcome.imported_torch) == (2, "", False)
