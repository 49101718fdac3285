"""Prompts to embeddings, for the embedded model and for Wan."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llrag_cli.cli import console
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import replacing
from llrag_cli.models.embedded.text import TinyText, tokenize
from llrag_cli.models.wan.parts import WanBase


class TextEncoder(Protocol):
    """Turns prompts into what the backbone's cross-attention reads."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, length, D]; rows after a prompt's own tokens are zero."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that mean nothing to this encoder."""
        ...


class TinyTextEncoder:
    """The embedded model's words."""

    def __init__(self, text: TinyText) -> None:
        self.text = text.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        limit = self.text.config.length
        ids = self.text.pad([tokenize(prompt, limit=limit)[0] for prompt in prompts])
        embeddings: Tensor = self.text(ids.to(self.text.norm.weight.device))
        return embeddings

    def unknown_words(self, prompt: str) -> list[str]:
        """As ``TextEncoder.unknown_words``."""
        return tokenize(prompt, limit=self.text.config.length)[1]


class Umt5TextEncoder:
    """Wan's UMT5-XXL as the original feeds it: cleaned, 512 tokens, padding zeroed; in bfloat16, as it is released."""

    LENGTH = 512

    def __init__(
        self, base: WanBase, *, device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._tokenizer: Any = base.tokenizer()
        self._model: Any = base.text_encoder(dtype).requires_grad_(requires_grad=False).to(device or "cpu")

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        device = next(self._model.parameters()).device
        tokens = self._tokenizer(
            [clean_text(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.LENGTH,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        hidden: Tensor = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None].to(hidden.dtype)

    def unknown_words(self, prompt: str) -> list[str]:
        """None: its tokenizer splits any word into pieces it knows."""
        return []


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

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
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
        length = Umt5TextEncoder.LENGTH
        return torch.stack(
            [F.pad(rows, (0, 0, 0, length - len(rows))) for rows in map(self._known.__getitem__, prompts)]
        )

    def unknown_words(self, prompt: str) -> list[str]:
        """None, as ``Umt5TextEncoder``."""
        return []

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
        return load_file(file)["embedding"]
    except (SafetensorError, KeyError, OSError):  # half a file of another time: made anew
        return None


def _write_embedding(file: Path | None, embedding: Tensor) -> None:
    """Keep an embedding for the next time; where that is not possible the prompt is simply encoded again."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, hint="make room") as partial:
            save_file({"embedding": embedding.contiguous()}, partial)
    except (OSError, LlragError) as error:
        console.warn(f"the embedding of the prompt could not be cached in `{file.parent}`: {error}")


def clean_text(text: str) -> str:
    """Repaired, HTML-unescaped twice, white space collapsed."""
    import ftfy

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped).strip()
