"""Official files are read strictly: what does not fit is named, and nothing is half loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import GOLDENS
from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import read_file
from llrag_cli.memory.encoder import load_encoder
from llrag_cli.models.wan.checkpoints import generator_state, load_transformer, lora_state, merge_lora

FORMATS = GOLDENS / "formats"


def test_the_ema_entry_must_be_there_when_asked_for() -> None:
    content = read_file(FORMATS / "generator.pt")
    with pytest.raises(LlragError, match="holds `generator` but not `generator_ema`") as caught:
        generator_state(content, ema=True, source="generator.pt")
    assert "backbone.ema=false" in caught.value.hint


def test_a_missing_tensor_is_named() -> None:
    state = generator_state(read_file(FORMATS / "generator.pt"), ema=False)
    del state["blocks.0.ffn.2.bias"]
    with pytest.raises(LlragError, match=r"lacks `blocks\.0\.ffn\.net\.2\.bias`"):
        load_transformer(state, source="generator.pt", heads=1)


def test_an_extra_tensor_is_named() -> None:
    state = generator_state(read_file(FORMATS / "generator.pt"), ema=False)
    state["blocks.0.unheard_of"] = torch.zeros(3)
    with pytest.raises(LlragError, match=r"has unknown `blocks\.0\.unheard_of`"):
        load_transformer(state, source="generator.pt", heads=1)


def test_a_misshapen_tensor_is_named() -> None:
    state = generator_state(read_file(FORMATS / "generator.pt"), ema=False)
    state["blocks.0.self_attn.q.bias"] = torch.zeros(3)
    with pytest.raises(LlragError, match=r"`blocks\.0\.attn1\.to_q\.bias` of shape \[3\], not \[16\]"):
        load_transformer(state, source="generator.pt", heads=1)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, size: int) -> None:
    broken = tmp_path / "generator.pt"
    broken.write_bytes((FORMATS / "generator.pt").read_bytes()[:size])
    with pytest.raises(LlragError, match=r"`.*generator\.pt` cannot be read as a checkpoint"):
        read_file(broken)


def test_truncated_safetensors_are_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(100)}, broken)
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(LlragError, match="cannot be read as a checkpoint"):
        read_file(broken)


def test_foreign_weights_are_told_apart() -> None:
    with pytest.raises(LlragError, match="is not a generator checkpoint"):
        generator_state({"epoch": 3, "optimizer": {}}, ema=False, source="x.pt")
    with pytest.raises(LlragError, match="is not a LoRA"):
        lora_state({"weight": torch.zeros(2)}, source="x.pt")
    with pytest.raises(LlragError, match="is not a retrieval encoder"):
        load_encoder(FORMATS / "generator.pt")


def test_a_lora_for_another_model_is_refused() -> None:
    state = generator_state(read_file(FORMATS / "generator.pt"), ema=False)
    lora = {"blocks.9.ffn.0.lora_A.weight": torch.zeros(2, 16), "blocks.9.ffn.0.lora_B.weight": torch.zeros(24, 2)}
    with pytest.raises(LlragError, match=r"does not fit the model at `blocks\.9\.ffn\.0`"):
        merge_lora(state, lora, alpha=1.0, source="lora.pt")
