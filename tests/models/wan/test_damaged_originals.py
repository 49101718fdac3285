"""Original checkpoints of Wan whose tensors are not what a model's sizes can be read from."""

from __future__ import annotations

import pytest
import torch

from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import State
from llrag_cli.models.wan.checkpoints import generator_state, lora_state
from llrag_cli.models.wan.text import umt5_from
from llrag_cli.models.wan.tiny_decoder import tiny_network_from
from llrag_cli.models.wan.vae import wan_vae_from

TEXT = {
    "token_embedding.weight": (32, 8),
    "blocks.0.pos_embedding.embedding.weight": (4, 2),
    "blocks.0.ffn.fc1.weight": (16, 8),
    "blocks.0.attn.q.weight": (8, 8),
}
VAE = {"decoder.head.2.weight": (3, 4, 3, 3, 3), "conv2.weight": (4, 4, 1, 1, 1)}


def state(shapes: dict[str, tuple[int, ...]], **others: tuple[int, ...]) -> State:
    return {name: torch.zeros(shape) for name, shape in {**shapes, **others}.items()}


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("shape", [(), (4,), (4, 0), (4, 2, 2)])
def test_text_encoders(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(LlragError, match="not of 2 axes"):
        umt5_from(state(TEXT, **{name: shape}), source="t5")


@pytest.mark.parametrize("name", ["blocks.x.norm1.weight", "blocks.999999.norm1.weight", "blocks."])
def test_layers_of_a_text_encoder(name: str) -> None:
    """A layer of a high number is no reason to build all before it."""
    with pytest.raises(LlragError, match="`t5` lacks"):
        umt5_from(state(TEXT, **{name: (1,)}), source="t5")


@pytest.mark.parametrize("shape", [(), (3,), (3, 0), (3, 10**6)])
def test_vaes(shape: tuple[int, ...]) -> None:
    for name in VAE:
        with pytest.raises(LlragError, match="not of 5 axes"):
            wan_vae_from(state(VAE, **{name: shape}), source="vae")


def test_names_of_a_vae() -> None:
    with pytest.raises(LlragError, match="under unknown names"):
        wan_vae_from(state(VAE, **{"decoder.upsamples.x": (1,)}), source="vae")


def test_tiny_decoders() -> None:
    scalars = {f"decoder.{number}.conv.weight": () for number in range(30)}
    with pytest.raises(LlragError, match="`tiny` lacks"):
        tiny_network_from(state(scalars), source="tiny", dtype=torch.float32)


def test_names_that_are_numbers() -> None:
    with pytest.raises(LlragError, match="not a generator"):
        generator_state({1: torch.zeros(1)}, ema=False)  # type: ignore[dict-item]
    with pytest.raises(LlragError, match="not a LoRA"):
        lora_state({1: torch.zeros(1)})  # type: ignore[dict-item]
