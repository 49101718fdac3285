from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from llrag_cli.config import RunConfig, video_frames
from llrag_cli.errors import UsageError
from llrag_cli.presets import METHODS, load_config, preset_names

FRAMEWISE = ["causal-forcing-1step", "causal-forcing-2step", "causal-forcing-framewise"]


def test_there_are_six_configurations_the_embedded_one_and_frame_wise_ones() -> None:
    assert preset_names() == ["tiny", "causal-forcing", *FRAMEWISE, "longlive", "self-forcing"]
    for name in preset_names():
        for method in METHODS:
            assert load_config(name, method=method).memory.policy == method


@pytest.mark.parametrize("name", ["causal-forcing", "longlive", "self-forcing"])
def test_the_released_values(name: str) -> None:
    native, retrieval = (load_config(name, method=method) for method in METHODS)
    assert native.memory.window == retrieval.memory.window == 12
    assert native.memory.sink == retrieval.memory.sink == 1
    assert (retrieval.memory.retrieved, retrieval.memory.guard) == (6, 5)
    assert native.sampler == retrieval.sampler
    assert native.sampler.steps == (1000, 750, 500, 250)
    assert native.sampler.shift == 5.0
    assert (native.backbone.height, native.backbone.width, native.backbone.fps) == (60, 104, 16)
    assert native.backbone.ema == (name == "self-forcing")
    assert (native.backbone.lora is not None) == (name == "longlive")


def test_configurations_are_frozen() -> None:
    config = load_config("tiny", method="native")
    with pytest.raises(ValidationError):
        config.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "problem", "hint"),
    [
        ("memory.retreived=4", "there is no setting `memory.retreived`", "did you mean `memory.retrieved`?"),
        ("memory.retrieved", "`--set memory.retrieved` is not KEY=VALUE", "for example `--set memory.retrieved=4`"),
        ("memory.retrieved=-1", "greater than or equal to 0, not `-1`", "prints every setting"),
        ("memory.retrieved=9", "leaves 2 local frames, fewer than the 3 of a block", "prints every setting"),
        ("memory.sink=4", "a sink of 4 is longer than a block of 3", "prints every setting"),
        ("sampler.steps=[250, 1000]", "steps must fall from noise to clean", "prints every setting"),
        ("sampler.shift=[", "`[` is no value for `sampler.shift`", "values are written as in YAML"),
        ("video.crf=best", "`video.crf`: input should be a valid integer", "prints every setting"),
    ],
)
def test_a_bad_setting_is_named(setting: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("tiny", method="retrieval", settings=[setting])
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_a_setting_is_applied() -> None:
    config = load_config("tiny", method="retrieval", settings=["memory.retrieved=2", "sampler.steps=[1000, 500]"])
    assert config.memory.retrieved == 2
    assert config.sampler.steps == (1000, 500)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_config("self-forcin", method="native")
    assert caught.value.hint == "did you mean `self-forcing`?"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("backbone:\n  family: tiny\n  frame_per_block: 3\nmethods:\n  native: {}\n", "line 3: unknown key"),
        ("backbone:\n  family: tiny\nmethods:\n  native:\n    windows: 3\n", "line 5: unknown key"),
        ("backbone:\n  family: huge\nmethods:\n  native: {}\n", "line 2: `backbone.family`"),
        ("backbone: [\n", "is not valid YAML in line 2"),
        ("- a\n- b\n", "holds no mapping"),
        ("backbone:\n  family: tiny\n", "has no method `native`"),
        ("methods:\n  native: {}\n", "`backbone`: field required"),
    ],
)
def test_a_bad_preset_file_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file, method="native")
    assert problem in caught.value.problem


@pytest.mark.parametrize(("seconds", "latent", "frames"), [(10, 21, 81), (5, 12, 45), (0.1, 3, 9), (30, 63, 249)])
def test_a_video_lasts_at_least_as_long_as_asked(seconds: float, latent: int, frames: int) -> None:
    config: RunConfig = load_config("tiny", method="native")
    assert config.latent_frames(seconds) == latent
    assert video_frames(latent) == frames
    assert frames / config.backbone.fps >= seconds
