"""Files nobody meant to give us: presets, prompts, run folders, weights, latents and logs, damaged at random.

Whatever they hold, the program ends by itself, with a sentence and a hint or with what was asked for, and never claims
a success that is none. ``HYPOTHESIS_PROFILE=explore pytest tests/test_fuzz.py`` tries a thousand of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llrag_cli.errors import LlragError
from llrag_cli.files.prompts import read_prompt_file
from llrag_cli.memory.encoder import load_encoder
from llrag_cli.presets import load_config, presets_folder
from llrag_cli.runs.folder import RunFolder, read_run
from llrag_cli.runs.latents import LatentFolder, read_latents
from llrag_cli.training.encoder.config import load_training
from runs.records import record_of

few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with bytes changed, taken out or put in, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        how = draw(st.sampled_from(("change", "take", "put", "cut")))
        if how == "change" and found:
            found[at] = draw(st.integers(0, 255))
        elif how == "take":
            del found[at : at + draw(st.integers(1, 20))]
        elif how == "put":
            found[at:at] = draw(st.binary(max_size=12))
        else:
            del found[at:]
    return bytes(found)


Found = TypeVar("Found")


def sentence_or(read: Callable[[], Found]) -> Found | None:
    """What was read, or nothing if that ended in a sentence and a hint."""
    try:
        return read()
    except LlragError as error:
        if not (error.problem and error.hint):
            raise
        return None


@few
@given(data=st.data())
def test_presets(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(data.draw(damaged((presets_folder() / "tiny.yaml").read_bytes())))
    config = sentence_or(lambda: load_config(file))
    assert config is None or (config.memory.window is not None and config.backbone.fps > 0)


@few
@given(data=st.data())
def test_training_presets(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(data.draw(damaged((presets_folder() / "encoder/tiny.yaml").read_bytes())))
    training = sentence_or(lambda: load_training(file))
    assert training is None or (training.epochs > 0)


@few
@given(content=st.binary(max_size=60))
def test_prompt_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    prompts = sentence_or(lambda: read_prompt_file(file))
    assert prompts is None or (prompts and all(prompt.strip() for prompt in prompts))


RECORD = json.loads(record_of().to_json())


@few
@given(name=st.sampled_from(sorted(RECORD)), value=json_values)
def test_records_of_runs(tmp_path: Path, name: str, value: object) -> None:
    folder = RunFolder(tmp_path)
    folder.record.write_text(json.dumps(RECORD | {name: value}))
    record = sentence_or(folder.read_record)
    assert record is None or (record.timeline.shots[0].start == 0 and 0 < record.seconds < 1e8 and record.blocks > 0)


@few
@given(data=st.data())
def test_damaged_records_of_runs(tmp_path: Path, data: st.DataObject) -> None:
    folder = RunFolder(tmp_path)
    folder.record.write_bytes(data.draw(damaged(record_of().to_json().encode())))
    record = sentence_or(folder.read_record)
    assert record is None or (record.fps == record.config.backbone.fps and record.blocks > 0)


@few
@given(data=st.data())
def test_memory_logs(tmp_path: Path, data: st.DataObject) -> None:
    folder = RunFolder(tmp_path)
    folder.record.write_text(json.dumps(RECORD))
    lines = [
        {"block": index, "frame": 3 * index, "retrieved": [1, 2], "similarities": [0.5, 0.1]} for index in range(4)
    ]
    folder.memory.write_bytes(data.draw(damaged("".join(json.dumps(line) + "\n" for line in lines).encode())))
    found = sentence_or(lambda: read_run(folder))
    assert found is None or (all(isinstance(frame, int) for block in found[1] for frame in block.retrieved))


@few
@given(data=st.data())
def test_latents(tmp_path: Path, data: st.DataObject) -> None:
    path = LatentFolder(tmp_path).write(0, torch.ones(2, 3, 2, 2), {"prompt": "a cat"})
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = sentence_or(lambda: read_latents(path))
    assert found is None or (found.latents.isfinite().all())


@few
@given(data=st.data())
def test_encoders(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"config": json.dumps({"latent_dim": 8})})
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with pytest.raises(LlragError) as said:
        load_encoder(path)
    assert said.value.problem and said.value.hint
