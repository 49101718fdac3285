"""Sizes of the embedded backbone: Wan's architecture, a thousandth of its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from llrag_cli.config import EMBEDDED_SHAPE
from llrag_cli.files.tensors import load_strictly, read_state, require_finite
from llrag_cli.models.embedded.storage import unpacked
from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vae import TinyVAE

LATENT = (8, 8, 8)  # channels, height, width of a latent frame
TEXT_DIM = EMBEDDED_SHAPE.text_dim  # as TinyTextConfig.dim

TRANSFORMER: dict[str, Any] = {
    **EMBEDDED_SHAPE.model_dump(exclude={"vae_base_dim"}),
    "out_channels": LATENT[0],
    "rope_max_seq_len": 64,
}


def new_transformer(*, seed: int = 0) -> WanTransformer3DModel:
    """A transformer of the embedded size with fresh weights: residual branches start at zero."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(**TRANSFORMER)
    with torch.no_grad():
        for block in transformer.blocks:
            for output in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                output.weight.mul_(0.2)
        transformer.proj_out.weight.zero_()
        transformer.proj_out.bias.zero_()
    return transformer


def load_vae(path: Path) -> TinyVAE:
    """The embedded VAE from its file, in float32."""
    vae = TinyVAE().eval().requires_grad_(requires_grad=False)
    state = {name: tensor.float() for name, tensor in read_state(path, model="the embedded VAE").items()}
    load_strictly(vae, state, source=str(path))
    require_finite(state, source=str(path))
    return vae


def weights_folder() -> Path:
    """Where the embedded weights lie, inside the package."""
    return Path(__file__).parent / "weights"


def load_embedded(backbone: Path | None = None) -> tuple[WanTransformer3DModel, TinyText, TinyVAE]:
    """The embedded transformer, text encoder and VAE, in float32 on the CPU; the first two of ``backbone`` if given."""
    folder = weights_folder()
    transformer, text = load_backbone(backbone or folder / "backbone.safetensors")
    return transformer, text, load_vae(folder / "vae.safetensors")


def load_backbone(path: Path) -> tuple[WanTransformer3DModel, TinyText]:
    """Transformer and text encoder from one file, in float32."""
    transformer, text = WanTransformer3DModel(**TRANSFORMER), TinyText()
    transformer.rope = nn.Identity()  # whoever uses the transformer brings its own
    both = nn.ModuleDict({"transformer": transformer, "text": text}).eval().requires_grad_(requires_grad=False)
    load_strictly(both, unpacked(read_state(path, model="the embedded backbone"), source=str(path)), source=str(path))
    return transformer, text
