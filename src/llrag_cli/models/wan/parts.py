"""What Wan backbones share: text encoder, tokenizer, VAE and transformer configuration, in either official layout.

``Wan2.1-T2V-1.3B-Diffusers`` has a folder for each; the original ``Wan2.1-T2V-1.3B`` has
``models_t5_umt5-xxl-enc-bf16.pth``, ``google/umt5-xxl``, ``Wan2.1_VAE.pth`` and one ``config.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.models.vae import wan_vae_from
from llrag_cli.models.wan.checkpoints import State, load_strictly, read_file, require_tensors

ORIGINAL_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
ORIGINAL_VAE = "Wan2.1_VAE.pth"

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


def base_folder(folder: Path, name: str) -> Path:
    """The base of a preset in a weights folder; where only the original Wan files are there, those."""
    original = name.removesuffix("-Diffusers")
    wanted = folder / name
    return folder / original if not wanted.exists() and (folder / original).exists() else wanted


class WanBase:
    """One folder of shared parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.original = not (folder / "vae").is_dir() and (folder / ORIGINAL_VAE).exists()

    def missing(self) -> list[Path]:
        """Files and folders that should be there and are not."""
        parts = ("text_encoder", "tokenizer", "vae")
        names = (ORIGINAL_TEXT, ORIGINAL_VAE, "google/umt5-xxl") if self.original else parts
        return [self.folder / name for name in names if not (self.folder / name).exists()]

    def heads(self) -> int | None:
        """Attention heads of the transformer, which its tensors do not tell; None where no configuration says it."""
        file = self.folder / ("config.json" if self.original else "transformer/config.json")
        if not file.exists():
            return None
        config = _json(file)
        key = "num_heads" if self.original else "num_attention_heads"
        heads = config.get(key)
        if not isinstance(heads, int) or heads < 1:
            raise LlragError(
                f"`{file}` has no `{key}`", hint="fetch it again with `llrag download weights vae --force`"
            )
        return heads

    def vae(self, dtype: torch.dtype) -> AutoencoderKLWan:
        """The VAE, in a type."""
        if self.original:
            file = self.folder / ORIGINAL_VAE
            vae: AutoencoderKLWan = wan_vae_from(read_file(file), source=str(file)).to(dtype)
            return vae
        place = self.folder / "vae"
        with _damage_named(place, "vae"):
            return AutoencoderKLWan.from_pretrained(place, torch_dtype=dtype, local_files_only=True)

    def tokenizer(self) -> Any:
        """The tokenizer of the text encoder."""
        from transformers import AutoTokenizer

        place = self.folder / ("google/umt5-xxl" if self.original else "tokenizer")
        with _damage_named(place, "text-encoder"):
            return AutoTokenizer.from_pretrained(place, local_files_only=True)

    def text_encoder(self, dtype: torch.dtype) -> Any:
        """The UMT5 encoder, in a type, on the CPU."""
        from transformers import UMT5EncoderModel
        from transformers.utils.logging import disable_progress_bar

        if self.original:
            file = self.folder / ORIGINAL_TEXT
            return umt5_from(read_file(file), source=str(file), dtype=dtype).eval()
        place = self.folder / "text_encoder"
        disable_progress_bar()
        with _damage_named(place, "text-encoder"):
            return UMT5EncoderModel.from_pretrained(place, dtype=dtype, local_files_only=True).eval()

    def text_files(self) -> list[Path]:
        """The files that make prompt embeddings what they are."""
        if self.original:
            folders, files = [self.folder / "google/umt5-xxl"], [self.folder / ORIGINAL_TEXT]
        else:
            folders, files = [self.folder / "text_encoder", self.folder / "tokenizer"], []
        return sorted([*files, *(file for folder in folders for file in folder.glob("*") if file.is_file())])


class _damage_named:  # noqa: N801 - reads as a statement
    """Names the folder when a library cannot read it."""

    def __init__(self, place: Path, item: str) -> None:
        self.place, self.item = place, item

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, LlragError):
            return
        raise LlragError(
            f"`{self.place}` cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint=f"fetch it again with `llrag download weights {self.item} --force`",
        ) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LlragError(f"`{file}` cannot be read: {error}", hint="fetch it again") from None


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

    needed = ("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight", "blocks.0.ffn.fc1.weight")
    require_tensors(state, needed, source=source, kind="Wan's UMT5 text encoder")
    vocabulary, width = state["token_embedding.weight"].shape
    buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=state["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=state["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
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
