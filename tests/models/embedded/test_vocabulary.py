from __future__ import annotations

import random
import subprocess
import sys

import pytest

from llrag_cli.models.embedded import vocabulary
from llrag_cli.models.embedded.vocabulary import LENGTH, described, read_prompt, tokenize
from llrag_cli.world import sprites
from llrag_cli.world.sprites import caption, prompt, random_scene, vague_caption


def test_the_vocabulary_knows_the_colours_of_the_world() -> None:
    assert tuple(sprites.OBJECT_COLORS) == vocabulary.OBJECT_COLORS
    assert tuple(sprites.WALL_COLORS) == vocabulary.WALL_COLORS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "a red circle and a white cross pass by on a striped blue wall",
            "understood: red circle, white cross, pass by, striped blue wall",
        ),
        (
            "A RED ball is slowly passing by, on a rôse wall",
            "understood: RED ball, slowly passing by, rôse wall",
        ),
        ("two shapes in front of a wall", "understood: two shapes, wall"),
        ("it stops and looks up", "ignored: stops, looks, up"),
        ("a red dragon bounces", "understood: red, bounces · ignored: dragon"),
        (
            "a gray ball bounces on a red wall",
            "understood: gray ball, bounces, red wall · cannot draw: gray ball (objects are red, green, blue, yellow, "
            "orange, purple, white or black), red wall (walls are blue, green, gray, brown or pink)",
        ),
        (
            "a striped red square on a plain wall",
            "understood: striped red square, plain wall · cannot draw: striped red square (only walls have patterns)",
        ),
        (
            "a blue circle on a navy wall",
            "understood: blue circle, navy wall · cannot draw: blue circle (an object has another colour than the "
            "wall)",
        ),
        (
            "a red circle and a crimson cross",
            "understood: red circle, crimson cross · cannot draw: crimson cross (objects of one video differ in "
            "colour)",
        ),
        (
            "a red circle bounces and a blue cross orbits",
            "understood: red circle, bounces, blue cross, orbits · cannot draw: bounce and orbit (all objects of a "
            "video move alike)",
        ),
        (
            "a red circle, a blue circle, a green circle, a white circle and a black circle",
            "understood: red circle, blue circle, green circle, white circle, black circle · cannot draw: 5 objects "
            "(there are at most 4)",
        ),
    ],
)
def test_a_prompt_is_read(text: str, sentence: str) -> None:
    assert read_prompt(text).sentence() == sentence


def test_words_past_the_limit_are_ignored() -> None:
    reading = read_prompt("a red circle and " * 6 + "a green square")
    assert reading.ignored == ("green", "square")


def test_whatever_the_model_was_trained_on_can_be_drawn() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        for text in (prompt(scene), caption(scene, rng), caption(scene, rng, keep=0.5), vague_caption(scene, rng)):
            reading = read_prompt(text)
            assert reading.complete or len(tokenize(text, limit=99)[0]) > LENGTH, (text, reading)


def test_the_description_names_every_colour_and_shape() -> None:
    text = "\n".join(described())
    for name in (*sprites.OBJECT_COLORS, *sprites.WALL_COLORS, *sprites.SHAPES, *sprites.PATTERNS):
        assert name in text


def test_reading_a_prompt_needs_no_torch() -> None:
    code = "import llrag_cli.models.embedded.vocabulary, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
