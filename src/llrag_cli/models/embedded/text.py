"""The embedded model's text encoder; its words are in ``vocabulary.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from llrag_cli.models.embedded.vocabulary import CONCEPTS, LENGTH, PAD, tokenize


class TinyTextConfig(BaseModel):
    """Sizes of the embedded text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    length: int = Field(default=LENGTH, gt=0, description="words at most; shorter prompts are padded with zero rows")
    dim: int = Field(default=96, gt=0, description="features of a word")
    layers: int = Field(default=2, ge=0, description="transformer layers")
    heads: int = Field(default=4, gt=0, description="attention heads")


class TinyText(nn.Module):
    """Word ids to embeddings [B, length, dim]; rows after the last word are zero, as with Wan's encoder."""

    def __init__(self, config: TinyTextConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TinyTextConfig()
        self.word_embedding = nn.Embedding(len(CONCEPTS) + 2, config.dim)
        self.place_embedding = nn.Embedding(config.length, config.dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.dim,
                config.heads,
                4 * config.dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of padded ids [B, length]."""
        absent = ids == PAD
        hidden = self.word_embedding(ids) + self.place_embedding.weight
        attended = absent.clone()
        attended[:, 0] = False  # an empty prompt still has something to attend to
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=attended)
        return self.norm(hidden).masked_fill(absent[..., None], 0.0)

    def pad(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Ids [B, length] of ragged id lists."""
        rows = [[*ids, *(PAD,) * (self.config.length - len(ids))] for ids in texts]
        return torch.tensor(rows)


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
