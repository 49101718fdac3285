"""The official repositories at toy size: the golden generator, LoRA, encoder and VAE in the released containers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from llrag_cli.models.wan.vae import wan_vae_from

GOLDENS = Path(__file__).parent / "goldens"
TEXT_DIM = 32  # of the golden generator
WIDTH, HEIGHT = 12, 8  # of the golden latents


def _pt(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def golden_generator() -> dict[str, Tensor]:
    """The golden generator's tensors; names start with ``model.``"""
    state = load_file(GOLDENS / "weights_generator.safetensors")
    return {name if name.startswith("model.") else f"model.{name}": tensor for name, tensor in state.items()}


def umt5() -> UMT5EncoderModel:
    """A small random text encoder as wide as the golden generator reads."""
    torch.manual_seed(5)
    words = UMT5Config(
        vocab_size=20, d_model=TEXT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return UMT5EncoderModel(words).eval()


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of four words."""
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "cat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    fast.save_pretrained(folder)


def official_repos(scratch: Path) -> dict[str, dict[str, bytes]]:
    """``{repository: {path: content}}`` with every file that the three backbones need."""
    state = golden_generator()
    wrapped = {name.replace("model.", "model._fsdp_wrapped_module.", 1): tensor for name, tensor in state.items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    lora = load_file(GOLDENS / "weights_lora.safetensors")
    ae = load_file(GOLDENS / "weights_ae.safetensors")
    config = json.loads((GOLDENS / "weights_ae.json").read_text())["ae_config"]
    vae_sizes = json.loads((GOLDENS / "weights_vae_tiny.json").read_text())["arch"]
    vae = wan_vae_from(
        load_file(GOLDENS / "weights_vae_tiny.safetensors"),
        source="golden",
        dim_mult=vae_sizes["dim_mult"],
        num_res_blocks=vae_sizes["num_res_blocks"],
        temperal_downsample=vae_sizes["temperal_downsample"],
    )
    base = scratch / "base"
    vae.save_pretrained(base / "vae")
    umt5().save_pretrained(base / "text_encoder", max_shard_size="20kB")  # in shards, as the released one is
    save_tokenizer(base / "tokenizer")
    (base / "transformer").mkdir()
    (base / "transformer/config.json").write_text(json.dumps({"num_attention_heads": 3, "attention_head_dim": 32}))
    (base / "model_index.json").write_text("{}")
    shared = {file.relative_to(base).as_posix(): file.read_bytes() for file in base.rglob("*") if file.is_file()}
    return {
        "qixinhu11/LongLive-RAG": {
            "checkpoints/self_forcing.pt": _pt({"generator_ema": wrapped, "generator": zeros, "critic": zeros}),
            "checkpoints/causal_forcing.pt": _pt({"generator": state}),
            "checkpoints/longlive_base.pt": _pt({"generator": state}),
            "checkpoints/longlive_lora.pt": _pt({"generator_lora": lora, "critic_lora": {}, "step": 3}),
            "checkpoints/ae_latent_mem.pt": _pt({"model": ae, "config": {**config, "epochs": 400}, "epoch": 400}),
            "checkpoints/moviegenbench_128_refined.txt": b"a cat\n",
            "checkpoints/vidprom_filtered_extended.txt": b"a cat\na dog\n",
            "README.md": b"# LongLive-RAG",
        },
        "zhuhz22/Causal-Forcing": {
            "chunkwise/causal_forcing.pt": _pt({"generator": state}),
            "framewise/causal_forcing.pt": _pt({"generator_ema": wrapped}),
            "causal-forcing++/framewise-2step.pt": _pt({"generator_ema": wrapped}),
            "causal-forcing++/framewise-1step.pt": _pt({"generator_ema": wrapped}),
        },
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": shared,
    }
