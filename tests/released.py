"""The official repositories at their true size or smaller, with random weights."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config

from hub import Content
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.models.wan.text import umt5_name

GOLDENS = Path(__file__).parent / "goldens"
LONGLIVE_RAG, WAN = "qixinhu11/LongLive-RAG", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
CHUNK = 2**22  # numbers of a chunk
SHARD = 5 * 10**9  # bytes of tensors in a file of the text encoder, at most
HEADS = 12  # of the transformer

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """How large the models are; by default as released."""

    layers: int = 1000  # of each model, at most
    transformer: Mapping[int, int] = field(default_factory=dict)  # what stands for a length of an axis
    text: Mapping[int, int] = field(default_factory=dict)
    vae_dim: int = 96
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def shapes(self, manifest: str, lengths: Mapping[int, int]) -> Shapes:
        """The tensors of a released file."""
        tensors = json.loads((GOLDENS / f"manifest_{manifest}.json").read_text())["tensors"]
        return {
            name: tuple(lengths.get(length, length) for length in about["shape"])
            for name, about in tensors.items()
            if _layer(name) < self.layers
        }


TOY = Sizes(
    layers=2,
    transformer={1536: 192, 8960: 64, 9216: 1152, 4096: 32},
    text={4096: 32, 10240: 48, 256384: 300, 64: 4},
    vae_dim=4,
    encoder=EncoderConfig(hidden_dims=(4, 8, 8)),
)


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index("blocks") + 1]) if "blocks" in parts else 0


class Stored:
    """A file on disk, as the hub has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def __len__(self) -> int:
        return self.path.stat().st_size

    def chunks(self, start: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(4 * CHUNK):
                yield chunk


class RandomTensors:
    """A safetensors file of float32 that is nowhere: vectors of ones, all else the same random numbers repeated."""

    def __init__(self, shapes: Shapes) -> None:
        entries, self._end = {}, 0
        self._shapes = shapes
        for name, shape in shapes.items():
            begin, self._end = self._end, self._end + 4 * prod(shape)
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, self._end]}
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        digest = hashlib.sha256()
        for chunk in self.chunks(0):
            digest.update(chunk)
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._header) + self._end

    def chunks(self, start: int) -> Iterator[bytes]:
        position = 0
        for chunk in self._all():
            if position + len(chunk) > start:
                yield chunk[max(0, start - position) :]
            position += len(chunk)

    def _all(self) -> Iterator[bytes]:
        numbers = 0.02 * torch.randn(CHUNK, generator=torch.Generator().manual_seed(0))
        random, ones = (memoryview(each.numpy()).cast("B") for each in (numbers, torch.ones(CHUNK)))
        yield self._header
        for shape in self._shapes.values():
            source, left = ones if len(shape) == 1 else random, 4 * prod(shape)
            while left:
                yield bytes(source[: min(left, len(source))])
                left -= min(left, len(source))


def save_random(path: Path, containers: Mapping[str, Shapes]) -> None:
    """Write what ``torch.save`` writes of dicts of tensors, without ever holding them in memory."""
    content = {key: {name: torch.empty(shape) for name, shape in shapes.items()} for key, shapes in containers.items()}
    with torch.serialization.skip_data():
        torch.save(content, path)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    torch.manual_seed(0)
    for tensors in mapped.values():
        for name, tensor in tensors.items():
            fill(name, tensor)


def fill(name: str, tensor: Tensor) -> None:
    """Random numbers with which activations stay finite."""
    if tensor.ndim == 1:
        tensor.fill_(float("norm" in name and name.endswith("weight")))
    else:
        tensor.normal_(std=0.02)


def released_base(folder: Path, sizes: Sizes) -> dict[str, bytes | Content]:
    """The files of the base that all backbones share: VAE, text encoder, tokenizer, configurations."""
    return {**_base(folder, sizes), **_text_encoder(folder, sizes)}


def released_checkpoint(folder: Path, name: str, sizes: Sizes) -> Stored:
    """A file of LongLive-RAG's repository, written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "ae_latent_mem.pt":
        torch.manual_seed(0)
        state = LatentAutoencoder(sizes.encoder).state_dict()
        torch.save({"model": state, "config": sizes.encoder.model_dump()}, folder / name)
    elif name == "longlive_lora.pt":
        save_random(folder / name, {"generator_lora": sizes.shapes("lora_r256", sizes.transformer)})
    else:
        shapes = sizes.shapes("generator_1_3b", sizes.transformer)
        ema = name == "self_forcing.pt"  # its names are those of a sharded model
        if ema:
            shapes = {each.replace("model.", "model._fsdp_wrapped_module.", 1): shape for each, shape in shapes.items()}
        save_random(folder / name, {"generator_ema" if ema else "generator": shapes})
    return Stored(folder / name)


def _base(folder: Path, sizes: Sizes) -> dict[str, bytes | Content]:
    """VAE and configuration of the transformer."""
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=sizes.vae_dim).save_pretrained(folder / "vae")
    weights = "vae/diffusion_pytorch_model.safetensors"
    head = sizes.transformer.get(1536, 1536) // HEADS
    return {
        "vae/config.json": (folder / "vae/config.json").read_bytes(),
        weights: Stored(folder / weights),
        "transformer/config.json": json.dumps({"num_attention_heads": HEADS, "attention_head_dim": head}).encode(),
    }


def _text_encoder(folder: Path, sizes: Sizes) -> dict[str, bytes | Content]:
    """UMT5 in shards, and a tokenizer of as many words as it has."""
    shapes = {umt5_name(name): shape for name, shape in sizes.shapes("umt5_xxl_encoder", sizes.text).items()}
    vocabulary, width = shapes["shared.weight"]
    heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"][1]
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        num_layers=1 + max(_layer(name.replace("encoder.block.", "blocks.")) for name in shapes),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    config.save_pretrained(folder / "text_encoder")
    shards: list[Shapes] = [{}]
    for name, shape in shapes.items():
        if 4 * sum(map(prod, (*shards[-1].values(), shape))) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    index: dict[str, Any] = {
        "metadata": {"total_size": 4 * sum(map(prod, shapes.values()))},
        "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
    }
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((chr(97 + n), -9.0) for n in range(26))]
    words += [(f"w{number}", -20.0) for number in range(vocabulary - len(words))]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    files: dict[str, bytes | Content] = {
        f"text_encoder/{file}": RandomTensors(shard) for file, shard in zip(names, shards, strict=True)
    }
    files["text_encoder/model.safetensors.index.json"] = json.dumps(index).encode()
    for path in (folder / "text_encoder/config.json", *(folder / "tokenizer").iterdir()):
        files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files
