"""The embedded model's text: a word tokenizer over the concepts of its world, and a small encoder.

Synonyms share an id, so `crimson disc` is `red circle`. Words that mean nothing here are left out and
reported, never an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn

PAD, UNKNOWN = "[PAD]", "[UNK]"

CONCEPTS: tuple[str, ...] = (  # one id each, synonyms in one line
    "a an the one some its it this that",
    "and plus_and with while also then",
    "two both pair couple",
    "three several many few",
    "red crimson scarlet ruby vermilion cherry",
    "green emerald lime jade olive",
    "blue navy azure cobalt sapphire",
    "yellow golden gold lemon",
    "orange amber tangerine",
    "purple violet lilac indigo",
    "white snowy ivory",
    "black ebony jet",
    "gray grey silver ash",
    "brown tan chocolate wooden earthy",
    "pink rose salmon rosy",
    "circle circles ball balls disc discs disk disks orb sphere",
    "square squares box boxes block blocks cube cubes",
    "triangle triangles wedge wedges pyramid pyramids",
    "cross crosses plus",
    "shape shapes object objects thing things figure figures",
    "small little tiny mini smaller",
    "large big huge giant larger great",
    "plain flat smooth empty simple solid",
    "striped stripes stripy lined banded",
    "dotted spotted dots polka spots speckled",
    "wall walls background backdrop field ground surface room scene",
    "bounce bounces bouncing bounced around hop hops hopping moves move moving fly flies flying",
    "orbit orbits orbiting go goes going circling round revolve revolves spin spins turning",
    "pass passes passing by slide slides sliding past drift drifts scroll scrolls pan pans panning",
    "on in over front of against before at across",
    "slowly slow gently gentle",
)

# left out without a word
SILENT = frozenset(
    ("is", "are", "was", "were", "be", "being", "there", "to", "as", "into", "onto", "back", "again", "now", "still")
)


@cache
def tokenizer() -> Tokenizer:
    """Lower-cased words and marks; every synonym of a concept has its id. 0 pads, 1 is unknown."""
    vocabulary = {PAD: 0, UNKNOWN: 1}
    for index, line in enumerate(CONCEPTS, start=2):
        vocabulary.update(dict.fromkeys(line.split(), index))
    words = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    words.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # at spaces and punctuation
    return words


def tokenize(text: str, *, limit: int) -> tuple[list[int], list[str]]:
    """Ids of the known words, at most ``limit``, and the unknown words in order (marks are passed over)."""
    ids, unknown = [], []
    encoded = tokenizer().encode(text)
    for token, (begin, end) in zip(encoded.ids, encoded.offsets, strict=True):
        word = text[begin:end]
        if token != 1:
            ids.append(token)
        elif any(map(str.isalnum, word)) and word.lower() not in SILENT and word not in unknown:
            unknown.append(word)
    return ids[:limit], unknown


class TinyTextConfig(BaseModel):
    """Sizes of the embedded text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    length: int = Field(default=24, gt=0, description="words at most; shorter prompts are padded with zero rows")
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
        absent = ids == 0
        hidden = self.word_embedding(ids) + self.place_embedding.weight
        attended = absent.clone()
        attended[:, 0] = False  # an empty prompt still has something to attend to
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=attended)
        return self.norm(hidden).masked_fill(absent[..., None], 0.0)

    def pad(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Ids [B, length] of ragged id lists."""
        rows = [[*ids, *(0,) * (self.config.length - len(ids))] for ids in texts]
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

    def unknown_words(self, prompt: str) -> list[str]:
        """As ``TextEncoder.unknown_words``."""
        return tokenize(prompt, limit=self.text.config.length)[1]
