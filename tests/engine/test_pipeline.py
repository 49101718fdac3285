"""A whole Wan pipeline from files in the official formats, at toy size, and the public names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import llrag_cli
from llrag_cli import LlragError, Pipeline, RunFolder, load_config, make_video, planning, read_video
from llrag_cli.files.tensors import read_file
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.models.wan.base import WanBase
from llrag_cli.models.wan.checkpoints import diffusers_name, generator_state
from llrag_cli.models.wan.text import Umt5TextEncoder, WanText, clean_text, load_text_encoder
from llrag_cli.planning import Budget
from llrag_cli.scenes.timeline import one_shot

PRESET = """
backbone:
  {{family: wan, weights: generator.pt, ema: true, base: base, height: 4, width: 6, fps: 16{lora}}}
sampler: {{steps: [1000, 500]}}
memory: {{strategy: nearest, window: 8, sink: 1, retrieved: 3, guard: 0, keys: encoder, encoder: ae.pt, archive: host}}
"""


def original_names(transformer: WanTransformer3DModel, template: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's tensors under the names of the released files, taken from a file of one layer."""
    ours = transformer.state_dict()
    return {name: ours[diffusers_name(name)] for name in template}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder: generator, LoRA and encoder as released, VAE, text encoder and tokenizer as diffusers saves."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    goldens = Path(__file__).parents[1] / "goldens" / "formats"
    template = generator_state(read_file(goldens / "generator.pt"), ema=False)
    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=32, freq_dim=16, ffn_dim=64, num_layers=1
    )
    state = original_names(transformer, template)
    wrapped = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    torch.save({"generator_ema": wrapped, "generator": {}}, folder / "generator.pt")
    name = "base_model.model.blocks.0.self_attn.q"
    lora = {f"{name}.lora_A.weight": torch.randn(2, 128), f"{name}.lora_B.weight": torch.randn(128, 2)}
    torch.save({"generator_lora": lora}, folder / "lora.pt")
    sizes = {"in_channels": 16, "spatial_h": 4, "spatial_w": 6, "latent_dim": 8, "hidden_dims": [8]}
    encoder = LatentAutoencoder(EncoderConfig.model_validate(sizes))
    torch.save({"model": encoder.state_dict(), "config": {**sizes, "epochs": 400}, "epoch": 3}, folder / "ae.pt")
    AutoencoderKLWan(base_dim=4).save_pretrained(folder / "base/vae")
    words = UMT5Config(vocab_size=20, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(words).save_pretrained(folder / "base/text_encoder")
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.save_pretrained(folder / "base/tokenizer")
    return folder


def preset(folder: Path, *, lora: str = "") -> Path:
    file = folder / "toy.yaml"
    file.write_text(PRESET.format(lora=lora))
    return file


@pytest.mark.parametrize("memory", ["none", "nearest"])
def test_wan_runs_from_official_files(weights: Path, tmp_path: Path, memory: str) -> None:
    config = load_config(preset(tmp_path), memory=memory)
    pipeline = Pipeline.load(config, device="cpu", weights=weights)
    record = make_video(pipeline, "a cat", RunFolder(tmp_path / "run"), seconds=3)
    assert record.status == "complete"
    assert len(read_video(tmp_path / "run/video.mp4")) == record.video_frames >= 48


def test_a_lora_changes_the_video(weights: Path, tmp_path: Path) -> None:
    plain, adapted = (
        next(
            Pipeline.load(load_config(preset(tmp_path, lora=lora), memory="none"), device="cpu", weights=weights).start(
                "a cat", seconds=0.5
            )
        ).latents
        for lora in ("", ", lora: lora.pt, lora_alpha: 2")
    )
    assert not torch.allclose(plain, adapted)


def test_padding_of_the_prompt_is_zeroed(weights: Path) -> None:
    embeddings = Umt5TextEncoder(WanBase(weights / "base"), dtype=torch.float32).encode(["a cat", "a"])
    assert embeddings.shape == (2, 512, 32)
    assert (embeddings[0, 2:] == 0).all()
    assert (embeddings[0, :2] != 0).any()
    assert (embeddings[1, 1:] == 0).all()


def test_text_is_cleaned_as_the_original_does() -> None:
    assert clean_text("  a\n cat &amp;amp; a  dog \u2026") == "a cat & a dog \u2026"


def test_an_encoder_of_another_size_is_refused(weights: Path, tmp_path: Path) -> None:
    config = load_config(preset(tmp_path), memory="nearest", settings=["backbone.width=8"])
    with pytest.raises(LlragError, match=r"was made for latents of 16x4x6, `.*` writes 16x4x8"):
        Pipeline.load(config, device="cpu", weights=weights)


def test_public_names_are_there() -> None:
    for name in llrag_cli.__all__:
        assert getattr(llrag_cli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llrag_cli.nothing


def test_an_archive_is_planned_for_one_video_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Pipeline.load(load_config("tiny", memory="nearest", settings=["memory.archive=auto"]))
    planned: list[int] = []

    def plan(*arguments: Any, batch: int, **settings: Any) -> Budget:
        planned.append(batch)
        return planning.plan(*arguments, batch=batch, **settings)

    monkeypatch.setattr("llrag_cli.engine.pipeline.plan", plan)
    timeline = one_shot("a red circle", tiny.config, latent_frames=6)
    assert {tiny.with_archive(timeline).config.memory.archive, tiny.budget(timeline).config.memory.archive} == {
        "device"
    }
    tiny.with_archive(timeline, batch=3)
    assert planned == [1, 1, 3]


def test_prompts_are_encoded_again_by_another_encoder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache on disk knows the encoder by its files: a prompt is never that of an encoder that was replaced."""
    shutil.copytree(weights / "base", tmp_path / "base")
    loaded: list[torch.dtype] = []
    load = load_text_encoder

    def watched(base: WanBase, dtype: torch.dtype) -> Any:
        loaded.append(dtype)
        return load(base, dtype)

    monkeypatch.setattr("llrag_cli.models.wan.text.load_text_encoder", watched)

    def encoded() -> torch.Tensor:
        return WanText(WanBase(tmp_path / "base"), cache=tmp_path / "prompts").encode(["a cat"])

    first = encoded()
    assert first.dtype == torch.bfloat16 and loaded == [torch.bfloat16]  # as it is released
    assert torch.equal(encoded(), first) and len(loaded) == 1
    file = tmp_path / "base/text_encoder/model.safetensors"
    changed = {name: 0.5 * tensor for name, tensor in load_file(file).items()}
    before = file.stat()
    save_file(changed, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # of the same size, one tick later
    assert file.stat().st_size == before.st_size
    other = encoded()
    assert len(loaded) == 2 and not torch.equal(other, first)
    with (tmp_path / "base/tokenizer/tokenizer_config.json").open("a") as tokenizer:
        tokenizer.write("\n")
    assert torch.equal(encoded(), other) and len(loaded) == 3
