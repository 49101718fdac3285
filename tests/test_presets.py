from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from llrag_cli.config import RunConfig
from llrag_cli.download.catalogue import Item, catalogue
from llrag_cli.errors import UsageError
from llrag_cli.memory.strategies import STRATEGIES, RetrievalMemory
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config, preset_names, with_settings

PLAIN = "self-gradient-forcing-framewise"  # without retrieval
FRAMEWISE = ["causal-forcing-1step", "causal-forcing-2step", "causal-forcing-framewise"]


def test_there_are_six_configurations_the_embedded_one_and_frame_wise_ones() -> None:
    embedded = ["tiny", *(f"tiny-{name}" for name in ("causal-forcing", "distilled", "longlive", "self-forcing"))]
    more = ["self-forcing", "self-gradient-forcing", PLAIN]
    assert preset_names() == [
        *(*embedded, "causal-forcing", *FRAMEWISE, "longlive", "longlive-sink3", "memflow", *more)
    ]
    for name in preset_names():
        assert load_config(name).memory.strategy == ("none" if name == PLAIN else "nearest")
        assert load_config(name, memory="none").memory.strategy == "none"
        assert load_config(name).checked  # how it is known to work, or not


@pytest.mark.parametrize("name", ["causal-forcing", "longlive", "self-forcing"])
def test_the_released_values(name: str) -> None:
    native, retrieval = load_config(name, memory="none"), load_config(name)
    assert isinstance(retrieval.memory, RetrievalMemory)
    assert native.memory.window == retrieval.memory.window == 12
    assert native.memory.sink == retrieval.memory.sink == 1
    assert (retrieval.memory.retrieved, retrieval.memory.guard) == (6, 5)
    assert native.sampler == retrieval.sampler
    assert native.sampler.steps == (1000, 750, 500, 250)
    assert native.sampler.shift == 5.0
    assert (native.backbone.height, native.backbone.width, native.backbone.fps) == (60, 104, 16)
    assert native.backbone.ema == (name == "self-forcing")
    assert (native.backbone.lora is not None) == (name == "longlive")


def test_the_windows_of_other_authors() -> None:
    for name in ("longlive-sink3", "memflow", "self-gradient-forcing"):
        native, retrieval = load_config(name, memory="none"), load_config(name)
        assert (native.memory.window, native.memory.sink) == (retrieval.memory.window, retrieval.memory.sink) == (12, 3)
        assert retrieval.sampler == load_config("self-forcing").sampler
    plain = load_config(PLAIN)
    assert (plain.memory.window, plain.memory.sink, plain.backbone.frames_per_block) == (21, 4, 1)
    with pytest.raises(UsageError, match="a sink of 4 is longer than a block of 1"):
        load_config(PLAIN, memory="nearest")


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith("tiny")])
def test_the_catalogue_fetches_the_files_of_a_preset(name: str) -> None:
    config, items = load_config(name), catalogue().weights
    (item,) = [item for key, item in items.items() if config.backbone.weights in targets(item)]
    if name != "longlive-sink3":
        assert items[name] == item
    if config.backbone.lora is not None:
        assert config.backbone.lora in targets(item)
    (file,) = [file for file in next(iter(item.sources.values())).files if file.to == config.backbone.weights]
    assert (file.convert, file.ema) == ("generator", config.backbone.ema)
    assert ("encoder" in item.needs) == (config.memory.strategy != "none")


def targets(item: Item) -> list[str]:
    return [file.to for source in item.sources.values() for file in source.files]


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("tiny-")])
def test_the_other_embedded_models_sample_as_the_real_backbones_do(name: str) -> None:
    distilled, plain = load_config(name), load_config("tiny")
    assert distilled.sampler == load_config("self-forcing").sampler
    same = {name: getattr(plain, name) for name in ("name", "about", "checked", "sampler")}
    assert distilled.model_copy(update={**same, "backbone": plain.backbone}) == plain
    assert distilled.backbone.model_copy(update={"weights": None}) == plain.backbone
    file = family_of(distilled).files(distilled, Path("elsewhere"))["backbone.weights"]
    assert file.is_file() and file.name == f"{name}.safetensors"
    own = with_settings(distilled, ["backbone.weights=mine.safetensors"])
    assert family_of(own).files(own, Path("elsewhere"))["backbone.weights"] == Path("elsewhere/mine.safetensors")
    below = with_settings(distilled, [f"backbone.weights=x/{name}.safetensors"])
    assert family_of(below).files(below, Path("e"))["backbone.weights"] == Path(f"e/x/{name}.safetensors")


def test_configurations_are_frozen() -> None:
    config = load_config("tiny")
    with pytest.raises(ValidationError):
        config.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "problem", "hint"),
    [
        ("memory.retreived=4", "unknown setting `memory.retreived`", "did you mean `memory.retrieved`?"),
        ("memory.retrieved", "`memory.retrieved` is not KEY=VALUE", "for example `memory.retrieved=4`"),
        ("memory.retrieved=-1", "greater than or equal to 0, not `-1`", "documentation of the settings"),
        ("memory.retrieved=9", "leaves 2 local frames, fewer than the 3 of a block", "documentation of the settings"),
        ("memory.commit=past", "should be 'full', 'recent' or 'self'", "documentation of the settings"),
        ("memory.commit_frames=6", "read by commit `recent` only, not by `full`", "documentation of the settings"),
        ("memory.times=ranks", "should be 'collapsed', 'interpolated' or 'ordered'", "documentation of the settings"),
        ("memory.sink=4", "a sink of 4 is longer than a block of 3", "documentation of the settings"),
        ("sampler.steps=[250, 1000]", "steps must fall from noise to clean", "documentation of the settings"),
        ("sampler.shift=[", "`[` is not a valid value for `sampler.shift`", "values are written as in YAML"),
        ("memory.relevance=0.3", "`nearest` has no `memory.relevance`", "did you mean `retrieved`?"),
        ("memory.strategy=nearst", "unknown memory strategy `nearst`", "did you mean `nearest`?"),
        ("video.crf=best", "`video.crf`: input should be a valid integer", "documentation of the settings"),
    ],
)
def test_a_bad_setting_is_named(setting: str, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("tiny", settings=[setting])
    assert problem in caught.value.problem
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["memory.commit=self", "memory.commit_frames=6"], "read by commit `recent` only, not by `self`"),
        (["memory.commit=recent", "memory.commit_frames=13"], "commit_frames 13 is more than the window of 12"),
        (["memory.commit=recent", "memory.commit_frames=2"], "commit_frames 2 is less than the 3 frames of a block"),
        (
            ["memory.strategy=none", "memory.window=null", "memory.commit=recent"],
            "commit `recent` without a window needs commit_frames",
        ),
        (
            ["memory.read_steps=3", "sampler.steps=[1000, 500]"],
            "read_steps 3 is more than the number of denoising steps, 2",
        ),
        (
            ["memory.read_steps=2", "sampler.first_steps=[1000]"],
            "read_steps 2 is more than the number of denoising steps, 1",
        ),
        (["memory.strategy=none", "memory.read_layers=1"], "`none` has no `memory.read_layers`"),
        (["memory.strategy=none", "memory.times=ordered"], "`none` has no `memory.times`"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings: list[str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("tiny", settings=settings)
    assert problem in caught.value.problem


def test_commit_rules_of_the_literature_are_settings() -> None:
    memory = load_config("tiny", settings=["memory.commit=recent", "memory.commit_frames=9"]).memory
    assert memory.commit_reach(3) == 9 and memory.recent_frames == 11  # the window without its sink
    memory = load_config("tiny", settings=["memory.commit=recent"]).memory
    assert memory.commit_reach(3) == memory.recent_frames == 12  # the newest frames take the place of the sink
    assert load_config("tiny", settings=["memory.commit=self"]).memory.commit_reach(3) == 3
    plain = load_config("tiny").memory
    assert plain.commit_reach(3) is None and plain.recent_frames == 11


def test_a_setting_is_applied() -> None:
    config = load_config("tiny", settings=["memory.retrieved=2", "sampler.steps=[1000, 500]"])
    assert config.memory.retrieved == 2
    assert config.sampler.steps == (1000, 500)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_config("self-forcin")
    assert caught.value.hint == "did you mean `self-forcing`?"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("backbone:\n  family: tiny\n  frame_per_block: 3\n", "line 3: unknown key"),
        ("backbone:\n  family: tiny\nmemory:\n  strategy: none\n  windows: 3\n", "line 5: `none` has no"),
        ("backbone:\n  family: tiny\nmemory:\n  strategy: none\n  retrieved: 3\n", "line 5: `none` has no"),
        (
            "backbone:\n  family: tiny\nmemory:\n  strategy: close\n",
            "line 3: `memory` names none of `none`, ",
        ),
        ("backbone:\n  family: tiny\nmemory:\n  window: 9\n", "line 3: `memory` names none of `none`, "),
        ("backbone:\n  family: huge\n", "line 2: `backbone.family`"),
        ("backbone: [\n", "`mine.yaml`, line 2: not valid YAML"),
        ("- a\n- b\n", "is not a mapping"),
        ("video: {}\n", "`backbone`: field required"),
    ],
)
def test_a_bad_preset_file_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert problem in caught.value.problem


@pytest.mark.parametrize(("seconds", "latent", "frames"), [(10, 21, 81), (5, 12, 45), (0.1, 3, 9), (30, 63, 249)])
def test_a_video_lasts_at_least_as_long_as_asked(seconds: float, latent: int, frames: int) -> None:
    config: RunConfig = load_config("tiny")
    assert config.latent_frames(seconds) == latent
    assert config.video_frames(latent) == frames
    assert frames / config.backbone.fps >= seconds


def test_another_strategy_keeps_the_parameters_that_it_has() -> None:
    preset = load_config("tiny").memory
    assert isinstance(preset, RetrievalMemory)
    for name in STRATEGIES.keys() - {"own"}:  # it needs a rule
        memory = load_config("tiny", memory=name).memory
        assert (memory.strategy, memory.window, memory.sink) == (name, preset.window, preset.sink)
        if isinstance(memory, RetrievalMemory):
            assert (memory.retrieved, memory.guard, memory.keys) == (preset.retrieved, preset.guard, preset.keys)
    assert load_config("tiny", settings=["memory.strategy=none"]) == load_config("tiny", memory="none")
