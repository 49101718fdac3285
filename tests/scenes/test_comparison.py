"""The scene of a comparison: what is left of it without retrieval, and when there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from llrag_cli.errors import UsageError
from llrag_cli.presets import load_config
from llrag_cli.scenes.comparison import native_scene, require_retrieval
from llrag_cli.scenes.example import demo_scene, example_scene
from llrag_cli.scenes.reading import read_scene
from llrag_cli.scenes.replay import Replay
from llrag_cli.scenes.schema import Scene, Shot
from llrag_cli.scenes.timeline import one_shot, plan_timeline

TINY = load_config("tiny")


def test_the_demo_is_the_example_without_its_switch(tmp_path: Path) -> None:
    file = tmp_path / "scene.yaml"
    file.write_text(example_scene(), encoding="utf-8")
    example, demo = read_scene(file), demo_scene()
    assert [shot.name for shot in demo.shots] == ["arrival", "elsewhere", "return"]
    assert all(shot in example.shots for shot in demo.shots)
    assert demo.model_copy(update={"shots": example.shots}) == example


def scene_with_references() -> Scene:
    return Scene.model_validate(
        {
            "references": {"house": "house.png", "mara": {"path": "mara.png", "pinned": True}},
            "shots": [
                {"prompt": "a", "seconds": 2, "name": "start", "remember": ["house"]},
                {"prompt": "b", "seconds": 2, "cut": True, "remember": ["house", "mara", "start"]},
                {"prompt": "c", "seconds": 2, "cut": True, "remember": "all"},
            ],
        }
    )


def test_without_retrieval_only_pinned_references_are_left() -> None:
    native = native_scene(scene_with_references())
    assert list(native.references) == ["mara"]
    assert [shot.remember for shot in native.shots] == ["none", ("mara", "start"), "all"]
    timeline = plan_timeline(native, load_config("tiny", memory="none"), measure=lambda path, config: 1)
    full = plan_timeline(scene_with_references(), TINY, measure=lambda path, config: 1)
    assert [shot.sink for shot in timeline.shots] == [shot.sink for shot in full.shots]  # `start` keeps the sink
    assert native_scene(demo_scene()) == demo_scene()


def test_something_must_be_retrieved() -> None:
    def require(scene: Scene, memory: str = "nearest", **changes: int) -> None:
        config = load_config(
            "tiny", memory=memory, settings=[f"memory.{key}={value}" for key, value in changes.items()]
        )
        require_retrieval(config.memory, plan_timeline(scene, config))

    require(demo_scene())
    with pytest.raises(UsageError, match="the memory strategy `none` retrieves nothing"):
        require(demo_scene(), "none")
    with pytest.raises(UsageError, match="the memory strategy `nearest` retrieves nothing"):
        require(demo_scene(), retrieved=0)
    alone = Scene(shots=(Shot(prompt="a", seconds=3), Shot(prompt="b", seconds=3, cut=True, remember="none")))
    with pytest.raises(UsageError, match="no shot of the scene can retrieve anything"):
        require(alone)
    require(Scene(shots=(Shot(prompt="a", seconds=3), Shot(prompt="b", seconds=3, cut=True))))


def test_the_last_block_alone_may_retrieve() -> None:
    longest = plan_timeline(Scene(shots=(Shot(prompt="a", seconds=20),)), TINY)
    first = next(block for block in range(longest.blocks) if [*Replay(TINY.memory, longest).candidates(block)])
    size = TINY.backbone.frames_per_block
    require_retrieval(TINY.memory, one_shot("a", TINY, latent_frames=(first + 1) * size))
    with pytest.raises(UsageError, match="nothing to compare"):
        require_retrieval(TINY.memory, one_shot("a", TINY, latent_frames=first * size))


def test_a_clip_that_fills_the_scene_leaves_nothing_to_compare() -> None:
    timeline = plan_timeline(Scene(shots=(Shot(prompt="a", seconds=20),)), TINY)
    require_retrieval(TINY.memory, timeline)
    given = timeline.shots[0].model_copy(update={"given_blocks": timeline.blocks})
    with pytest.raises(UsageError, match="nothing to compare"):
        require_retrieval(TINY.memory, timeline.model_copy(update={"shots": (given,)}))
