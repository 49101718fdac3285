"""Judging keys: quality with known answers, descriptors, and the command that compares them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from conftest import Llrag
from llrag_cli.evaluation.encoder.descriptors import random_projection
from llrag_cli.evaluation.encoder.quality import Geometry, quality
from llrag_cli.evaluation.encoder.rows import as_csv
from llrag_cli.models.embedded.model import load_embedded
from llrag_cli.world.panorama import WORLDS, World, make_panorama

GEOMETRY = Geometry(block=3, window=6, sink=1, guard=2, count=2)


def test_keys_that_know_the_answer_find_it() -> None:
    labels = torch.arange(90) // 3 % 6  # six objects in turn, three frames each: back after 18 frames
    told = F.one_hot(labels).float() + 0.01 * torch.randn(90, 6)
    found = quality([told], GEOMETRY, [labels])
    assert found.recall == pytest.approx(1.0) and found.reciprocal_rank == pytest.approx(1.0)
    assert found.queries > 10
    blind = quality([torch.randn(90, 6)], GEOMETRY, [labels])
    assert blind.recall is not None and blind.recall < 0.5


def test_neighbours_are_no_answers() -> None:
    """Keys that only know the time find their neighbours, which every past frame being a candidate shows."""
    labels = torch.arange(90) // 3 % 6
    angle = torch.arange(90) / 100
    clock = torch.stack((angle.cos(), angle.sin()), dim=1)
    found = quality([clock], GEOMETRY, [labels])
    assert found.unguarded_recall == 0.0
    assert found.near_guard == pytest.approx(1.0)
    assert found.similarity[1] > 0.99


def test_frames_of_the_same_stay_are_no_answers() -> None:
    labels = (torch.arange(120) // 40) % 2  # 0 stays for 40 frames, 1 for 40, then 0 comes back for 40
    clock = torch.stack(((torch.arange(120) / 100).cos(), (torch.arange(120) / 100).sin()), dim=1)
    found = quality([clock], GEOMETRY, [labels])
    assert found.queries == 13  # of the blocks of the return alone
    assert found.recall is not None and found.recall < 0.5


def test_without_labels_nothing_is_claimed() -> None:
    found = quality([torch.randn(60, 5)], GEOMETRY)
    assert found.recall is found.reciprocal_rank is found.unguarded_recall is None
    assert found.queries == 0
    assert as_csv({"noise": {"random": found}}).splitlines()[1].split(",")[5:9] == ["0", "", "", ""]


@pytest.mark.parametrize("world", WORLDS)
def test_a_panorama_knows_what_it_shows(world: World) -> None:
    vae = load_embedded()[2]
    first, again = (make_panorama(vae.encode, world, seconds=12, seed=5) for _ in range(2))
    assert torch.equal(first.latents, again.latents) and torch.equal(first.labels, again.labels)
    assert first.latents.shape[1:] == (8, 8, 8) and len(first.latents) == len(first.labels) == 25
    assert set(first.labels.tolist()) <= set(range(-1, 8))
    lit = make_panorama(vae.encode, world, seconds=12, seed=5, changing_light=True)
    assert torch.equal(lit.labels, first.labels) and not torch.allclose(lit.latents, first.latents, atol=0.1)


def test_projection_keeps_cosines() -> None:
    latents = torch.randn(12, 8, 8, 8)
    latents[1] = latents[0] + 0.5 * latents[1]
    exact = F.cosine_similarity(latents[0].flatten(), latents[1].flatten(), dim=0)
    keys = random_projection(latents)
    assert F.cosine_similarity(keys[0], keys[1], dim=0) == pytest.approx(float(exact), abs=0.1)


def test_the_table_compares_what_is_asked_for(llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("evaluate-encoder", "--videos", "2", "--seconds", "90", "--out", "report", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    lights = ("steady light", "changing light")
    assert list(told) == [
        f"objects differ in {world}, {light}: 2 videos of 90 s" for world in WORLDS for light in lights
    ]
    for title, table in told.items():
        assert list(table) == ["average pooling", "random projection", "embedded encoder"]
        assert all(0 < found["recall"] <= 1 and found["queries"] > 5 for found in table.values())
        pooling, encoder = table["average pooling"], table["embedded encoder"]
        assert encoder["similarity"]["1"] < 0.75 < 0.95 < pooling["similarity"]["1"]  # what the delta loss is for
        if "changing" in title:
            assert encoder["recall"] > 1.3 * pooling["recall"]  # 1.5 and more on the videos of the docs
    assert (tmp_path / "report/encoders.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report/encoders.json").read_text()) == told
    with (tmp_path / "report/encoders.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 * 2  # sets, kinds of keys, videos
    for title, table in told.items():
        for name, found in table.items():
            own = [row for row in rows if (row["set"], row["keys"]) == (title, name)]
            for value, weight in (("recall", "queries"), ("reciprocal_rank", "queries"), ("near_guard", "blocks")):
                total = sum(int(row[weight]) for row in own)
                mean = sum(float(row[value]) * int(row[weight]) for row in own) / total
                assert mean == pytest.approx(found[value], abs=1e-5)
            curve = [float(row["similarity_8"]) for row in own]
            assert sum(curve) / len(curve) == pytest.approx(found["similarity"]["8"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.safetensors"], "no such file: `nothing.safetensors`"),
        (["--videos", "0"], "cannot evaluate on 0 videos of 160 s with 6 retrieved frames"),
        (["--latents", "nowhere"], "there are no latents in `nowhere`"),
        (["--videos", "1", "--seconds", "10"], "the videos are too short for any object to return"),
    ],
)
def test_bad_requests_get_a_sentence(llrag: Llrag, arguments: list[str], said: str) -> None:
    done = llrag("evaluate-encoder", *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr and "hint: " in done.stderr
