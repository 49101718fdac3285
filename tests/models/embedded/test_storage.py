from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llrag_cli.errors import LlragError
from llrag_cli.models.embedded.model import load_backbone, weights_folder
from llrag_cli.models.embedded.storage import packed, unpacked

WEIGHTS = weights_folder() / "backbone.safetensors"


def test_packed_weights_are_half_as_large_and_nearly_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {name: value * (1 + 0.1 * torch.rand_like(value)) for name, value in unpacked(load_file(WEIGHTS)).items()}
    save_file(packed(state), tmp_path / "packed.safetensors")
    halves = sum(2 * value.numel() for value in state.values())
    assert (tmp_path / "packed.safetensors").stat().st_size < 0.56 * halves
    again = unpacked(load_file(tmp_path / "packed.safetensors"))
    assert again.keys() == state.keys()
    for name, value in state.items():
        step = value.flatten(1).abs().amax(dim=1, keepdim=True) / 127 if value.ndim > 1 else value.abs() / 1000
        assert ((again[name] - value).flatten(1 if value.ndim > 1 else 0).abs() <= 0.51 * step + 1e-6).all(), name
    transformer, text = load_backbone(tmp_path / "packed.safetensors")
    assert torch.equal(transformer.blocks[0].attn1.to_q.weight, again["transformer.blocks.0.attn1.to_q.weight"])
    assert torch.equal(text.word_embedding.weight, again["text.word_embedding.weight"])


def test_rows_of_zeros_stay_zero() -> None:
    matrix = torch.randn(64, 64)
    matrix[3] = 0
    assert torch.equal(unpacked(packed({"a": matrix}))["a"][3], torch.zeros(64))


def test_integers_without_scales_are_refused(tmp_path: Path) -> None:
    content = load_file(WEIGHTS)
    name = "transformer.blocks.0.attn1.to_q.weight"
    for damage in ({f"{name}.scale": None}, {f"{name}.scale": torch.ones(3)}, {f"{name}.scale": torch.ones(1)}):
        broken = {key: value for key, value in {**content, **damage}.items() if value is not None}
        save_file(broken, tmp_path / "broken.safetensors")
        with pytest.raises(LlragError, match=r"`transformer\.blocks\.0\.attn1\.to_q\.weight` in int8"):
            load_backbone(tmp_path / "broken.safetensors")
