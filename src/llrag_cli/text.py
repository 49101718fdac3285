"""Prompts to embeddings, for the embedded model and for Wan."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from llrag_cli.tiny.text import TinyText, tokenize


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
    """Wan's UMT5-XXL from a Diffusers-format folder, as the original feeds it: cleaned, 512 tokens, padding zeroed."""

    LENGTH = 512

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self._model: Any = UMT5EncoderModel.from_pretrained(
            folder / "text_encoder", dtype=dtype, local_files_only=True
        ).eval()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        tokens = self._tokenizer(
            [clean_text(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.LENGTH,
            truncation=True,
            return_tensors="pt",
        )
        hidden: Tensor = self._model(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None].to(hidden.dtype)

    def unknown_words(self, prompt: str) -> list[str]:
        """None: its tokenizer splits any word into pieces it knows."""
        return []


def clean_text(text: str) -> str:
    """Repaired, HTML-unescaped twice, white space collapsed."""
    import ftfy

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped).strip()
