from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import State
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


NAME = "transformer.blocks.0.attn1.to_q.weight"
SCALES = load_file(WEIGHTS)[f"{NAME}.scale"]
VECTOR = "transformer.blocks.0.attn1.to_q.bias"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ({f"{NAME}.scale": None}, "in int8, without scales"),
        ({f"{NAME}.scale": torch.ones(3)}, r"scales of shape \[3\] for the 128 rows"),
        ({f"{NAME}.scale": torch.ones(1)}, r"scales of shape \[1\]"),
        ({f"{NAME}.scale": torch.ones(128, 1)}, r"scales of shape \[128, 1\]"),
        *(({f"{NAME}.scale": SCALES * wrong}, "not positive numbers") for wrong in (-1, 0, torch.nan, torch.inf)),
        ({f"{NAME}.scale": SCALES.double() * 1e300}, "not positive numbers"),
        ({f"{NAME}.scale": torch.ones(128, dtype=torch.int64)}, "not positive numbers"),
        ({NAME: torch.ones(128, 128)}, "scales for `.*`, which is not a matrix of bytes"),
        ({f"{VECTOR}.scale": torch.ones(128)}, "scales for `.*`, which is not a matrix of bytes"),
        ({f"{NAME}.scale": torch.full((128,), 3e38)}, "not finite"),
        ({f"{NAME}.scale.scale": torch.ones(1)}, "has scales for|has unknown"),
        ({VECTOR: torch.full((128,), torch.nan)}, f"`{VECTOR}` that are not finite"),
        ({VECTOR: torch.full((128,), 1e300, dtype=torch.float64)}, f"`{VECTOR}` that are not finite"),
    ],
)
def test_what_packing_does_not_write_is_refused(tmp_path: Path, damage: State, problem: str) -> None:
    broken = {key: value for key, value in {**load_file(WEIGHTS), **damage}.items() if value is not None}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(LlragError, match=problem):
        load_backbone(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("content", [[1], {"model": {}}, {1: torch.ones(1)}, {"a": "b"}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(LlragError, match="does not hold tensors by name"):
        load_backbone(tmp_path / "w.pt")


def test_tensors_without_values_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, device="meta")}, tmp_path / "w.pt")
    with pytest.raises(LlragError, match="tensors of another kind"):
        load_backbone(tmp_path / "w.pt")
