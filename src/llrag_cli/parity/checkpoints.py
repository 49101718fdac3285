"""Golden checkpoint files, and the names and shapes of full-size ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import read_file
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder, load_encoder
from llrag_cli.models.wan.checkpoints import (
    diffusers_name,
    generator_state,
    load_transformer,
    lora_state,
    merge_lora,
    transformer_config,
)
from llrag_cli.models.wan.text import umt5_from
from llrag_cli.parity.checks import Check, Golden


def formats(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Small real files in every container a loader meets."""
    for name in sorted(about["files"]):
        try:
            yield _container(case, about, folder, name)
        except LlragError as error:  # a file that does not load is a failed row, and the others are still read
            yield Check(case, name, float("inf"), 0.0, error.problem)


def _container(case: str, about: dict[str, Any], folder: Path, name: str) -> Check:
    """Load one file as users' files are loaded; generators are held against the sums of their tensors."""
    content = read_file(folder / name)
    if "lora" in name:
        lora = lora_state(content, source=name)
        state = generator_state(read_file(folder / "generator.pt"), ema=False)
        merge_lora(state, lora, alpha=1.0, source=name)
        return Check(case, name, 0.0, 0.0, f"{len(lora)} tensors fit the generator")
    if name.startswith("ae"):
        sizes = load_encoder(folder / name).config
        return Check(case, name, 0.0, 0.0, f"embeddings of {sizes.latent_dim}")
    state = generator_state(content, ema="ema" in name, source=name)
    load_transformer(state, source=name, heads=about["arch"]["num_heads"])
    sums = {key.removeprefix("model."): value for key, value in about["checksum"].items()}
    errors = [abs(float(state[key].double().abs().sum()) - value) for key, value in sums.items()]
    return Check(case, name, max(errors), 1e-3, f"{len(state)} tensors")


def manifest(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Full-size checkpoints without data: every name and shape must fit our modules, on the meta device."""
    shapes = {name: entry["shape"] if isinstance(entry, dict) else entry for name, entry in about["tensors"].items()}
    fake = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if "umt5" in case:
        umt5_from(fake, source=case)  # strict: what does not fit is an error that names it
        yield Check(case, "names and shapes that do not fit", 0.0, 0.0, f"{len(fake)} tensors")
        return
    modules: tuple[nn.Module, dict[str, Tensor]]
    with torch.device("meta"):
        if "generator" in case:
            from diffusers import WanTransformer3DModel

            state = generator_state(fake, ema=False)
            model = WanTransformer3DModel(**transformer_config(state, heads=about["arch"]["num_heads"]))
            modules = model, {diffusers_name(name): tensor for name, tensor in state.items()}
        elif "config" in about and "latent_dim" in about["config"]:
            modules = LatentAutoencoder(EncoderConfig.model_validate(about["config"])), fake
        elif "vae" in case:
            from diffusers import AutoencoderKLWan

            names = about["diffusers_names"]
            modules = AutoencoderKLWan(), {names[name]: tensor for name, tensor in fake.items()}
        elif "lora" in case:
            adapted = {name.rsplit(".lora_", 1)[0] for name in lora_state(fake)}
            layers = 1 + max(int(name.split(".")[1]) for name in adapted)
            parts = [f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"] + ["ffn.0", "ffn.2"]
            wanted = {f"blocks.{layer}.{part}" for layer in range(layers) for part in parts}
            yield Check(
                case, "adapted layers that do not fit", float(len(adapted ^ wanted)), 0.0, f"{len(fake)} tensors"
            )
            return
        else:
            return
    expected = {name: tensor.shape for name, tensor in modules[0].state_dict().items()}
    ours = {name: tensor.shape for name, tensor in modules[1].items()}
    misfits = sum(expected.get(name) != ours.get(name) for name in expected.keys() | ours.keys())
    yield Check(case, "names and shapes that do not fit", float(misfits), 0.0, f"{len(ours)} tensors")
