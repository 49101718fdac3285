"""Layers in eight bits: which, how far they are off, where they are refused, and the copy on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import GOLDENS, Llrag, latents_of
from fakecuda import FakeGPU
from llrag_cli.config import EightBit, RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import rollout
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.memory.history import History, average_pool
from llrag_cli.memory.strategies import SlidingWindow
from llrag_cli.models import eight_bit
from llrag_cli.models.eight_bit import EightBitFile, is_eight_bit, quantize, require_eight_bit
from llrag_cli.models.wan import family
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.planning import plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")


def small(dtype: torch.dtype = torch.float32) -> WanTransformer3DModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
    model = WanTransformer3DModel(**sizes, freq_dim=16, text_dim=8, in_channels=4, out_channels=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).requires_grad_(requires_grad=False)


@torchao
def test_products_of_attention_and_feed_forward_become_eight_bits_and_nothing_else() -> None:
    model, exact = small(), {name: tensor.clone() for name, tensor in small().state_dict().items()}
    quantize(model, "int8")
    of_a_layer = [f"attn{a}.to_{part}" for a in (1, 2) for part in ("q", "k", "v", "out.0")]
    names = {f"blocks.{n}.{each}.weight" for n in (0, 1) for each in (*of_a_layer, "ffn.net.0.proj", "ffn.net.2")}
    rounded = {name for name, tensor in model.state_dict().items() if type(tensor) is not Tensor}
    assert rounded == names == {name for name in exact if is_eight_bit(name)}
    for name, tensor in model.state_dict().items():
        if name in names:
            assert tensor.qdata.dtype == torch.int8
            assert (tensor.dequantize() - exact[name]).abs().max() <= 0.6 * exact[name].abs().max() / 127
        else:
            assert torch.equal(tensor, exact[name])


@torchao
def test_a_product_is_nearly_exact_and_each_row_is_on_its_own() -> None:
    model = small(torch.bfloat16)
    layer = model.blocks[0].ffn.net[2]
    rows = torch.randn(2, 30, 48).bfloat16()
    exact = layer(rows).float()
    quantize(model, "int8")
    alone, together = layer(rows[:1]), layer(torch.cat([rows[:1], 100 * rows[1:]]))
    assert torch.equal(alone, together[:1])
    assert 0 < (alone.float() - exact[:1]).norm() / exact[:1].norm() < 0.02


def video(backbone: WanBackbone, frames: int = 15) -> Tensor:
    blocks = rollout(
        backbone,
        torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)),
        frames=frames,
        shape=(4, 4, 6),
        block=3,
        schedule=FlowMatchSchedule(steps=[1000, 500], shift=5.0),
        memory=SlidingWindow(window=9, sink=1),
        history=History(average_pool),
        noise=AddressedNoise(0, [0]),
    )
    return latents_of([*blocks])


@torchao
def test_compiled_it_needs_no_graph_of_its_own() -> None:
    """One for all layers, as with exact ones, and the same latents as uncompiled."""
    made = []
    torch.compiler.reset()
    counters.clear()
    for compiled in (False, True):
        model = small()
        quantize(model, "int8")
        backbone = WanBackbone(model)
        if compiled:
            backbone.compile(3, backend="aot_eager")
        made.append(video(backbone))
    torch.compiler.reset()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert torch.equal(*made)
    exact = video(WanBackbone(small()))
    assert 0 < (made[0] - exact).square().mean().sqrt() / exact.std() < 0.05


# --- the copy on disk -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A checkpoint and a LoRA, by their settings."""
    named = {"backbone.weights": "weights_generator", "backbone.lora": "weights_lora"}
    return {key: Path(shutil.copy(GOLDENS / f"{name}.safetensors", tmp_path)) for key, name in named.items()}


def config(kind: EightBit | None = "int8", *settings: str) -> RunConfig:
    return load_config("longlive", settings=[f"backbone.quantize={kind}", *settings] if kind else settings)


def load(files: dict[str, Path], *settings: str, dtype: torch.dtype = torch.bfloat16) -> WanTransformer3DModel:
    loaded: WanTransformer3DModel = family._load_transformer(config("int8", *settings), files, heads=3, dtype=dtype)
    return loaded


def product(model: WanTransformer3DModel) -> Tensor:
    layer = model.blocks[0].attn1.to_q
    result: Tensor = layer(torch.randn(1, 20, layer.in_features, generator=torch.Generator().manual_seed(2)).bfloat16())
    return result


@torchao
def test_the_second_start_reads_what_the_first_one_kept(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(files)
    (kept,) = tmp_path.glob("weights_generator.int8-*.safetensors")
    monkeypatch.setattr(family, "quantize", lambda *_: pytest.fail("it was rounded again"))
    second = load(files)
    assert torch.equal(product(first), product(second))
    for name, tensor in second.state_dict().items():
        original = first.state_dict()[name]
        assert type(tensor) is type(original) and tensor.dtype == original.dtype
    assert kept.stat().st_size < 0.75 * sum(each.nbytes for each in load_plain(files).parameters())


def load_plain(files: dict[str, Path]) -> WanTransformer3DModel:
    loaded: WanTransformer3DModel = family._load_transformer(config(None), files, heads=3, dtype=torch.bfloat16)
    return loaded


@torchao
def test_what_is_kept_belongs_to_one_checkpoint_lora_setting_and_version(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(*settings: str, dtype: torch.dtype = torch.bfloat16, without_lora: bool = False) -> str:
        named = [*files.values()][: 1 if without_lora else 2]
        return EightBitFile(config("int8", *settings).backbone, named, dtype=dtype).path.name

    names = [name(), name("backbone.lora_alpha=8"), name(dtype=torch.float32), name(without_lora=True)]
    monkeypatch.setattr(eight_bit, "version", lambda package: "9.9")
    names.append(name())
    os.utime(files["backbone.weights"], ns=(1, 1))
    names.append(name())
    os.utime(files["backbone.lora"], ns=(1, 1))
    names.append(name())
    assert len({*names}) == len(names) == 7
    assert name("memory.window=15") == names[-1]


@torchao
@pytest.mark.parametrize("content", [b"", b"damaged", "cut", "other"])
def test_a_damaged_copy_is_made_again(files: dict[str, Path], tmp_path: Path, content: bytes | str) -> None:
    expected = product(load(files))
    (kept,) = tmp_path.glob("*.int8-*.safetensors")
    whole = kept.read_bytes()
    if content == "other":
        shutil.copy(GOLDENS / "weights_generator.safetensors", kept)
    else:
        kept.write_bytes(whole[:-100] if isinstance(content, str) else content)
    assert torch.equal(product(load(files)), expected)
    assert len(kept.read_bytes()) == len(whole)


@torchao
def test_a_folder_that_cannot_be_written_is_no_error(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Iterator[Path]:
        raise LlragError("no")

    monkeypatch.setattr("llrag_cli.files.durable.replacing", refused)
    assert load(files).blocks[0].attn1.to_q.weight.qdata.dtype == torch.int8


# --- where it is refused ----------------------------------------------------------------------------


def refusal(kind: EightBit, device: torch.device, **how: Any) -> str:
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "compiled": False, "offload": False}
    with pytest.raises(UsageError) as caught:
        require_eight_bit(kind, device=device, **{**settings, **how})
    return caught.value.problem


def test_what_does_not_compute_in_eight_bits_is_refused() -> None:
    said = "`fp8` needs a GPU of compute capability 8.9 or more, and this is "
    assert refusal("fp8", CPU) == f"{said}a CPU"
    assert refusal("int8", CPU, offload=True) == "eight-bit weights stay on the device"
    with FakeGPU() as gpu:
        assert refusal("fp8", GPU, dtype=torch.float32) == "`fp8` computes in bfloat16"
        assert refusal("int8", GPU).startswith("`int8` on a GPU needs compiled layers")
        require_eight_bit("int8", device=GPU, dtype=torch.bfloat16, compiled=True, offload=False)
        require_eight_bit("fp8", device=GPU, dtype=torch.bfloat16, compiled=False, offload=False)
        gpu.capability = (8, 6)
        assert refusal("fp8", GPU) == f"{said}Fake GPU with 8.6"


def test_without_torchao_it_is_refused_before_torch(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bit, "find_spec", lambda name: None)
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("it was loaded"))
    done = llrag("generate", "a red circle", "--backbone", "tiny", "--quantize", "int8")
    assert done.returncode == 2
    assert "torchao, which computes in eight bits, is not installed" in done.stderr
    assert "hint: `pip install 'llrag[quantize]'`" in done.stderr
    done = llrag("generate", "a red circle", "--quantize", "int9")
    assert done.returncode == 2 and "did you mean `int8`?" in done.stderr


# --- plan and run -----------------------------------------------------------------------------------


def test_the_plan_counts_a_byte_for_a_weight(files: dict[str, Path]) -> None:
    def weights(kind: EightBit | None) -> int:
        sizes = family.FAMILY.transformer_sizes(config(kind), Path("nothing"), torch.bfloat16)
        return sizes.weights

    assert weights(None) == pytest.approx(2.84e9, rel=0.01)
    assert weights("int8") == weights("fp8") == pytest.approx(1.46e9, rel=0.01)
    budget = plan(config(), Path("nothing"), device=CPU, dtype=torch.bfloat16, seconds=30)
    assert {part.name: part.bytes for part in budget.parts}["weights"] == weights("int8")


@torchao
def test_the_plan_is_what_is_loaded(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family.WanFamily, "files", lambda *_: files)
    sizes = family.FAMILY.transformer_sizes(config(), Path("nothing"), torch.bfloat16)
    held = sum(
        each.qdata.nbytes + each.scale.nbytes if is_eight_bit(name) else each.nbytes
        for name, each in load(files).named_parameters()
    )
    assert sizes.weights == pytest.approx(held, rel=1e-6)


FEW = ("--seconds", "2", "--set", "sampler.steps=[1000]", "--device", "cpu")


@torchao
def test_a_run_keeps_its_bits(llrag: Llrag, tmp_path: Path) -> None:
    made = llrag("generate", "a red circle", *FEW, "--quantize", "int8", "--out", "run")
    assert made.returncode == 0, made.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["config"]["backbone"]["quantize"] == "int8" and "torchao" in record["versions"]
    plain = llrag("generate", "a red circle", *FEW, "--out", "plain")
    assert plain.returncode == 0
    assert "torchao" not in json.loads((tmp_path / "plain/run.json").read_text())["versions"]
    latents = [(tmp_path / name / "latents.safetensors").read_bytes() for name in ("run", "plain")]
    assert latents[0] != latents[1]
    refused = llrag("generate", "--resume", "plain", "--seconds", "4", "--quantize", "int8")
    assert refused.returncode == 2
    assert "`plain` was started with other settings: `backbone.quantize`" in refused.stderr
    assert llrag("generate", "--resume", "run", "--seconds", "4").returncode == 0
    whole = llrag("generate", "a red circle", *FEW, "--seconds", "4", "--quantize", "int8", "--out", "whole")
    assert whole.returncode == 0
    for name in ("latents.safetensors", "video.mp4"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@torchao
def test_it_is_refused_before_anything_is_read(llrag: Llrag) -> None:
    done = llrag("generate", "a red circle", *FEW, "--quantize", "fp8")
    assert done.returncode == 2 and "and this is a CPU" in done.stderr
