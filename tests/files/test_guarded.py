"""Guarded reading: limits on size, depth, numbers and text, and pictures of more than 8 bits."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llrag_cli.errors import DamagedFileError, UsageError
from llrag_cli.files import image
from llrag_cli.files.guarded import UnreadableError, json_values, parse_json, read_bytes
from llrag_cli.files.headers import read_header
from llrag_cli.files.image import open_image
from llrag_cli.files.paths import is_file_name, is_inner_path
from llrag_cli.files.records import read_shards
from llrag_cli.files.settings import parse_setting
from llrag_cli.files.yaml_lines import parse_yaml
from llrag_cli.memory.strategies import STRATEGIES
from llrag_cli.presets import load_config, preset_names

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just("text"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(value=values)
def test_plausible_json_is_read_as_python_reads_it(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("1 2", "more than one JSON value"),
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ("[" * 30 + "]" * 30, "nested too deep"),
        (json.dumps([0] * 200_001), "too many values"),
        ("[NaN]", "`NaN` is not finite"),
        ("[1e999]", "a number is not finite"),
        ("9" * 5000, "a number is too long"),
        ('{"a": 1, "a": 2}', "the key `a` is given twice"),
        ('"\\u0000"', "a text has a null character"),
        ('{"\\ud83d": 1}', "an escape is no character"),
        ("{]", "not valid JSON: "),
    ],
)
def test_implausible_json_is_named(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as raised:
        parse_json(text)
    assert reason in raised.value.reason and raised.value.hint


def test_lists_as_deep_as_allowed_are_read() -> None:
    assert parse_json("[" * 24 + "]" * 24)
    assert [line for line, _ in json_values("1\n\n2 3")] == [1, 3, 3]


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 100)
    assert len(read_bytes(file, limit=100)) == 100
    for path, limit in ((file, 99), (tmp_path, 99)):
        with pytest.raises(UnreadableError):
            read_bytes(path, limit=limit)


def test_headers_of_unfinished_runs_may_count_fewer_bytes(tmp_path: Path) -> None:
    file = tmp_path / "latents.safetensors"
    header = json.dumps({"latents": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert read_header(file, whole=False).entries["latents"].shape == (0, 2)
    with pytest.raises(UnreadableError, match="8 bytes at its end are of no tensor"):
        read_header(file)


@pytest.mark.parametrize("text", ["yes", "true", "[true]"])
@pytest.mark.parametrize("name", ["memory.retrieved", "backbone.fps", "sampler.steps", "sampler.shift"])
def test_a_flag_is_no_number(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"`{name}"):
        load_config("tiny", settings=[f"{name}={text}"])


def test_a_number_is_no_flag() -> None:
    assert load_config("tiny", settings=["sampler.warp=no"]).sampler.warp is False
    with pytest.raises(UsageError, match=r"`sampler\.warp`: input should be a valid boolean, not `1\.0`"):
        load_config("tiny", settings=["sampler.warp=1.0"])


def test_settings_are_read_as_before() -> None:
    for text, value in (("", None), ("3e-4", "3e-4"), ("1_000", 1000), ("[1, 2]", [1, 2]), ("0x10", 16)):
        assert parse_setting(f"a={text}", ["a"], example="a=1") == ("a", value)
    for name in preset_names():
        if load_config(name).memory.sink > load_config(name).backbone.frames_per_block:
            continue  # retrieval is not defined for it
        for strategy in STRATEGIES.keys() - {"own"}:  # it needs a rule
            load_config(name, memory=strategy)


def test_keys_that_are_no_text_can_be_allowed() -> None:
    assert parse_yaml("0.5: 1", name="a", text_keys=False).content == {0.5: 1}
    with pytest.raises(UsageError, match="a key must be text"):
        parse_yaml("0.5: 1", name="a")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_more_than_8_bits_are_scaled(tmp_path: Path, mode: str) -> None:
    white = {"I;16": 65_535, "I": 65_535, "F": 1.0}[mode]
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    pixels = np.array([[0, white / 2, white]], dtype=np.float64).astype(kinds[mode])
    file = tmp_path / ("a.tif" if mode == "F" else "a.png" if mode == "I;16" else "b.tif")
    Image.fromarray(pixels).save(file)
    picture = np.asarray(open_image(file)).astype(int)
    assert picture.shape == (1, 3, 3)
    assert abs(picture[0, :, 0] - [0, 127.5, 255]).max() <= 1


@pytest.mark.parametrize("value", [2.0, -1.0, float("nan"), float("inf")])
def test_pixels_out_of_range_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((2, 2), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match="has pixels outside of 0 to 1"):
        open_image(tmp_path / "a.tif")


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MOST_PIXELS", 63)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="has 8x8 pixels, more than"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "x" * 256, "é" * 200])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    assert not is_file_name(name)


def test_paths_lead_below_their_folder() -> None:
    assert is_inner_path("vae/model.safetensors") and is_inner_path("a.b")
    for path in ("", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "x" * 300 + "/a", "a/\0"):
        assert not is_inner_path(path)


@pytest.mark.parametrize("shard", ["../../x", "/etc/passwd", "a\0", "x" * 300])
def test_shards_lie_below_their_index(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors"}}))
    assert read_shards(index) == {"model-1.safetensors"}
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(DamagedFileError):
        read_shards(index)
