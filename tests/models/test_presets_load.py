"""Presets whose weights were not at hand: files of the inferred format load strictly, full-size, on the meta device."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import GOLDENS
from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import State
from llrag_cli.models.wan.checkpoints import generator_state, load_transformer, lora_state, merge_lora
from llrag_cli.presets import load_config


def full_size(manifest: str) -> State:
    about = json.loads((GOLDENS / f"manifest_{manifest}.json").read_text())["tensors"]
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in about.items()}


@pytest.mark.parametrize(
    "name", ["longlive-sink3", "memflow", "self-gradient-forcing", "self-gradient-forcing-framewise"]
)
def test_a_checkpoint_of_the_same_shape_loads_strictly(name: str) -> None:
    config = load_config(name).backbone
    tensors = full_size("generator_1_3b")
    wrapped = {key.replace("model.", "model._fsdp_wrapped_module.", 1): value for key, value in tensors.items()}
    content = {"generator_ema": wrapped, "generator": tensors} if config.ema else {"generator": tensors}
    state = generator_state(content, ema=config.ema)
    if config.lora is not None:
        state = merge_lora(state, lora_state(full_size("lora_r256")), alpha=config.lora_alpha)
    transformer = load_transformer(state, source=name)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 1_418_996_800
    assert transformer.config.in_channels == 16  # type: ignore[union-attr]
    with pytest.raises(LlragError):
        load_transformer({key: value for key, value in state.items() if "blocks.7." not in key}, source=name)
