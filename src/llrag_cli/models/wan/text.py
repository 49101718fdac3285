"""Wan's prompts: UMT5, and a cache of its embeddings, so that the large encoder is loaded for new prompts alone."""

from __future__ import annotations

import hashlib
import html
import json
import re
import threading
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli.errors import LlragError, LlragWarning
from llrag_cli.files.durable import create_folder, replacing
from llrag_cli.files.tensors import (
    State,
    load_strictly,
    read_file,
    read_metadata,
    read_shapes,
    read_state,
    require_axes,
)
from llrag_cli.models.wan.base import TEXT_LENGTH, WanBase, reading
from llrag_cli.models.wan.checkpoints import layers_of

_T5_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


class Umt5TextEncoder:
    """Wan's UMT5-XXL as the original feeds it: cleaned, 512 tokens, padding zeroed; in bfloat16, as it is released."""

    def __init__(
        self, base: WanBase, *, device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._tokenizer: Any = load_tokenizer(base)
        self._model: Any = load_text_encoder(base, dtype).requires_grad_(requires_grad=False).to(device or "cpu")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        device = next(self._model.parameters()).device
        tokens = self._tokenizer(
            [clean_text(prompt) for prompt in prompts],
            padding="max_length",
            max_length=TEXT_LENGTH,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        hidden: Tensor = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None].to(hidden.dtype)


class WanText:
    """Wan's prompts as embeddings: from memory, from the cache on disk, or from the text encoder.

    The encoder is four times the size of the backbone, so it is in memory only while it encodes. An embedding
    [512, D] is cached without its zero rows, under a name made of the encoder's files and the prompt.
    """

    def __init__(self, base: WanBase, *, cache: Path | None, device: torch.device | None = None) -> None:
        self.base = base
        self.cache = cache
        self.device = device
        self._known: dict[str, Tensor] = {}
        self._lock = threading.Lock()  # sessions on several threads load the encoder once

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        with self._lock:
            self._require(prompts)
        return torch.stack(
            [F.pad(rows, (0, 0, 0, TEXT_LENGTH - len(rows))) for rows in map(self._known.__getitem__, prompts)]
        )

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether the embeddings of all prompts are in memory or on disk, so that the encoder is not needed."""
        return all(
            prompt in self._known or _read_embedding(self._file(prompt)) is not None
            for prompt in dict.fromkeys(prompts)
        )

    def encoder_bytes(self) -> int:
        """Bytes of the text encoder in bfloat16, whatever its files are in; only headers of safetensors are read."""
        shapes = [shape for file in self.base.text_weight_files() for shape in read_shapes(file).values()]
        return sum(torch.bfloat16.itemsize * shape.numel() for shape in shapes)

    def _require(self, prompts: Sequence[str]) -> None:
        """Have the embeddings of prompts in memory."""
        wanted = {prompt: self._file(prompt) for prompt in dict.fromkeys(prompts)}
        for prompt, file in wanted.items():
            if prompt not in self._known and (found := _read_embedding(file)) is not None:
                self._known[prompt] = found
        new = [prompt for prompt in wanted if prompt not in self._known]
        if new:
            encoder = Umt5TextEncoder(self.base, device=self.device)
            for prompt in new:  # one at a time: a batch would round differently
                rows = encoder.encode([prompt])[0].cpu()
                count = int(rows.ne(0).any(dim=1).sum())
                self._known[prompt] = rows[:count].clone()
                _write_embedding(wanted[prompt], self._known[prompt])
            del encoder
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _file(self, prompt: str) -> Path | None:
        if self.cache is None:
            return None
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self.base.text_files()]
        identity = json.dumps([files, "bfloat16", clean_text(prompt)])
        return self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"


def _read_embedding(file: Path | None) -> Tensor | None:
    if file is None or not file.exists():
        return None
    try:
        embedding, recorded = read_file(file)["embedding"], read_metadata(file).get("crc32")
    except (LlragError, KeyError):  # no file of ours, or one that was changed: written again
        return None
    fits = embedding.ndim == 2 and 0 < len(embedding) <= TEXT_LENGTH
    return embedding if fits and recorded == _checksum(embedding) else None


def _checksum(embedding: Tensor) -> str:
    """CRC-32 of an embedding [L, D], its type and its shape."""
    about = f"{embedding.dtype} {[*embedding.shape]}".encode()
    return str(zlib.crc32(embedding.contiguous().view(torch.uint8).numpy().tobytes(), zlib.crc32(about)))


def _write_embedding(file: Path | None, embedding: Tensor) -> None:
    """Keep an embedding for the next time; where that is not possible the prompt is simply encoded again."""
    if file is None:
        return
    try:
        create_folder(file.parent)
        with replacing(file, hint="make room") as partial:
            save_file({"embedding": embedding.contiguous()}, partial, metadata={"crc32": _checksum(embedding)})
    except (OSError, LlragError) as error:
        text = f"the embedding of the prompt could not be cached in `{file.parent}`: {error}"
        warnings.warn(text, LlragWarning, stacklevel=2)


def clean_text(text: str) -> str:
    """Repaired, HTML-unescaped twice, white space collapsed."""
    import ftfy

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped).strip()


def load_tokenizer(base: WanBase) -> Any:
    """The tokenizer of the text encoder."""
    from transformers import AutoTokenizer

    with reading(base.tokenizer, kind="a tokenizer"):
        return AutoTokenizer.from_pretrained(base.tokenizer, local_files_only=True)


def load_text_encoder(base: WanBase, dtype: torch.dtype) -> Any:
    """The UMT5 encoder in a dtype, on the CPU."""
    from transformers import UMT5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    path = base.text_encoder
    if base.original:
        return umt5_from(read_state(path, model="Wan's UMT5 text encoder"), source=str(path), dtype=dtype).eval()
    disable_progress_bar()
    with reading(path, kind="a text encoder"):
        return UMT5EncoderModel.from_pretrained(path, dtype=dtype, local_files_only=True).eval()


def umt5_name(name: str) -> str:
    """The name of an original text encoder parameter in ``UMT5EncoderModel``."""
    for pattern, replacement in _T5_RENAMES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name


def umt5_from(state: Mapping[str, Tensor], *, source: str, dtype: torch.dtype | None = None) -> Any:
    """A ``UMT5EncoderModel`` from the original checkpoint's tensors, sizes read from them; strict."""
    from transformers import UMT5Config, UMT5EncoderModel

    layers = layers_of(dict(state))
    numbered = (f"blocks.{number}.attn.q.weight" for number in range(layers) if layers <= len(state))
    needed = ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.ffn.fc1.weight")
    axes = dict.fromkeys((*needed, "blocks.0.attn.q.weight", *numbered, f"blocks.{layers - 1}.attn.q.weight"), 2)
    require_axes(state, axes, source=source, model="Wan's UMT5 text encoder")
    vocabulary, width = state["token_embedding.weight"].shape
    buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=state["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=state["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=layers,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    renamed: State = {umt5_name(name): tensor for name, tensor in state.items()}
    if "encoder.embed_tokens.weight" in encoder.state_dict():  # one table under two names
        renamed["encoder.embed_tokens.weight"] = renamed["shared.weight"]
    if dtype is not None:
        renamed = {name: tensor.to(dtype) for name, tensor in renamed.items()}
    load_strictly(encoder, renamed, source=source)
    encoder.tie_weights()
    return encoder
