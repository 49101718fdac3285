"""Checkpoints of Wan transformers under their original names: generators, LoRAs, and diffusers' module for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llrag_cli.config import ModelShape
from llrag_cli.errors import LlragError, UnsupportedModelError
from llrag_cli.files.tensors import State, load_strictly, name_some, read_shapes, require_tensors

# Original Wan name -> diffusers name; each pattern is tried in order on the name without `model.`
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.self_attn\.([qkv])\.", r"\1.attn1.to_\2."),
    (r"^(blocks\.\d+)\.cross_attn\.([qkv])\.", r"\1.attn2.to_\2."),
    (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attn1.to_out.0."),
    (r"^(blocks\.\d+)\.cross_attn\.o\.", r"\1.attn2.to_out.0."),
    (r"^(blocks\.\d+)\.self_attn\.norm_", r"\1.attn1.norm_"),
    (r"^(blocks\.\d+)\.cross_attn\.norm_", r"\1.attn2.norm_"),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
)


_EXPECTED = "expected `generator`, `generator_ema`, `model` or the tensors themselves"


def generator_state(content: Mapping[str, Any], *, ema: bool, source: str = "checkpoint") -> State:
    """A generator's tensors under their original names (``blocks.0.self_attn.q.weight``).

    Containers are ``{'generator': sd}``, ``{'generator_ema': sd}``, ``{'model': sd}`` or sd itself;
    with ``ema`` the EMA entry must be there.
    """
    wanted = "generator_ema" if ema else "generator"
    if not isinstance(content, Mapping):
        raise LlragError(f"`{source}` is not a generator checkpoint: it holds no tensors by name", hint=_EXPECTED)
    if wanted in content:
        state = content[wanted]
    elif "generator" in content or "generator_ema" in content:
        there = "generator" if ema else "generator_ema"
        raise LlragError(
            f"`{source}` holds `{there}` but not `{wanted}`",
            hint=f"set `backbone.ema={str(not ema).lower()}` to use the weights that are there",
        )
    else:
        state = content.get("model", content)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise LlragError(
            f"`{source}` is not a generator checkpoint: its keys are {name_some(content)}",
            hint=_EXPECTED,
        )
    return {_plain(name): tensor for name, tensor in state.items()}


def peek(path: Path, *, ema: bool) -> State:
    """A generator's tensors on the meta device, under original names: shapes and types without the data."""
    return generator_state(read_shapes(path), ema=ema, source=str(path))


def _plain(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "").removeprefix("model.")


def diffusers_name(name: str) -> str:
    """The name of a Wan parameter in ``WanTransformer3DModel``."""
    for pattern, replacement in _RENAMES:
        renamed, hits = re.subn(pattern, replacement, name)
        if hits:
            return renamed
    return name


def transformer_config(state: State, *, head_dim: int | None = None, heads: int | None = None) -> dict[str, Any]:
    """Arguments of ``WanTransformer3DModel`` that fit a state dict under original names.

    The number of heads is not in the tensors; released models have heads of 128.
    """
    patch = state["patch_embedding.weight"]  # [dim, in, 1, 2, 2]
    dim = patch.shape[0]
    if heads and dim % heads:
        raise LlragError(f"{dim} channels cannot be divided among {heads} heads", hint="check the model's config.json")
    size = dim // heads if heads else head_dim or 128
    layers = layers_of(state)
    patch_size = tuple(patch.shape[2:])
    return {
        "patch_size": patch_size,
        "num_attention_heads": dim // size,
        "attention_head_dim": size,
        "in_channels": patch.shape[1],
        "out_channels": state["head.head.weight"].shape[0] // (patch_size[0] * patch_size[1] * patch_size[2]),
        "text_dim": state["text_embedding.0.weight"].shape[1],
        "freq_dim": state["time_embedding.0.weight"].shape[1],
        "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": layers,
        "cross_attn_norm": "blocks.0.norm3.weight" in state,
        "eps": 1e-6,
    }


def layers_of(state: State) -> int:
    """How many layers a transformer has, by the names of its tensors."""
    numbers = {match[1] for name in state if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    return max((int(number) for number in numbers), default=-1) + 1


def transformer_arguments(shape: ModelShape) -> dict[str, Any]:
    """Arguments of ``WanTransformer3DModel`` for a shape."""
    return {**shape.model_dump(exclude={"vae_base_dim"}), "out_channels": shape.in_channels}


def lora_state(content: Mapping[str, Any], *, source: str = "LoRA") -> State:
    """A LoRA's tensors as ``blocks.0.self_attn.q.lora_A.weight``, from ``{'generator_lora': ...}`` or bare."""
    state = content.get("generator_lora", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise LlragError(
            f"`{source}` is not a LoRA: it holds no tensors by name", hint="expected `lora_A` and `lora_B`"
        )
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    wrong = [
        name
        for name, tensor in plain.items()
        if not re.search(r"\.lora_[AB]\.weight$", name) or not isinstance(tensor, Tensor) or tensor.ndim != 2
    ]
    if wrong:
        raise LlragError(
            f"`{source}` is not a LoRA: it holds {name_some(wrong)}", hint="expected `lora_A` and `lora_B`"
        )
    return plain


def merge_lora(state: State, lora: State, *, alpha: float, source: str = "LoRA") -> State:
    """Weights W + (alpha / rank) B A for each adapted W, all under original names.

    Merging costs nothing per step and agrees with separate adapters to rounding.
    """
    merged = dict(state)
    targets = sorted({name.rsplit(".lora_", 1)[0] for name in lora})
    for target in targets:
        weight = f"{target}.weight"
        down, up = lora.get(f"{target}.lora_A.weight"), lora.get(f"{target}.lora_B.weight")
        if weight not in state or down is None or up is None:
            raise LlragError(f"`{source}` does not fit the model at `{target}`", hint="it belongs to another backbone")
        if up.shape[1] != down.shape[0] or not down.numel():
            problem = f"`{source}` has factors of {list(up.shape)} and {list(down.shape)} at `{target}`"
            raise LlragError(problem, hint="it is damaged")
        delta = up.float() @ down.float() * (alpha / down.shape[0])
        if delta.shape != state[weight].shape:
            raise LlragError(
                f"`{source}` has a change of shape {list(delta.shape)} for `{weight}` of {list(state[weight].shape)}",
                hint="it belongs to another backbone",
            )
        merged[weight] = (state[weight].float() + delta).to(state[weight].dtype)
    return merged


def load_transformer(
    state: State, *, source: str, heads: int | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """A ``WanTransformer3DModel`` with the weights of a state dict under original names."""
    from diffusers import WanTransformer3DModel

    require_text_to_video(state, source=source)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**transformer_config(state, heads=heads))
    renamed = {diffusers_name(name): tensor for name, tensor in state.items()}
    transformer.rope = nn.Identity()  # its tables are on the meta device; WanBackbone brings its own
    load_strictly(transformer, renamed, source=source)
    if dtype is not None:
        cast(transformer, dtype)
    return transformer


def require_text_to_video(state: State, *, source: str) -> None:
    """Raise an error unless a state dict is a transformer that reads and writes latent frames, guided by text alone."""
    required = ("patch_embedding.weight", "head.head.weight", "text_embedding.0.weight", "time_embedding.0.weight")
    require_tensors(state, (*required, "blocks.0.ffn.0.weight"), source=source, model="a Wan generator")
    axes = {name: 5 if name.startswith("patch") else 2 for name in (*required, "blocks.0.ffn.0.weight")}
    wrong = [name for name, count in axes.items() if state[name].ndim != count or not state[name].numel()]
    count, named = layers_of(state), {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if wrong or len(named) != count:
        what = f"its `{wrong[0]}` has the shape {list(state[wrong[0]].shape)}" if wrong else "its layers have gaps"
        raise UnsupportedModelError(source, what, hint="use a text-to-video model of the kind of Wan2.1-T2V-1.3B")
    config = transformer_config(state)
    reads, writes, patch = config["in_channels"], config["out_channels"], config["patch_size"]
    reason = None
    if any(name.startswith("img_emb.") for name in state):
        reason = "it reads image embeddings, as image-to-video models do"
    elif reads != writes:
        reason = f"it reads {reads} channels and writes {writes}, as models with an image condition do"
    elif patch[0] != 1:
        reason = f"its tokens span {patch[0]} latent frames, not 1"
    if reason is not None:
        raise UnsupportedModelError(source, reason, hint="use a text-to-video model of the kind of Wan2.1-T2V-1.3B")


def kept_exact(name: str) -> bool:
    """Whether a parameter, named as in diffusers, stays in float32 whatever the model computes in.

    Norms, modulation tables and the time embedding, as diffusers does when it loads a model itself.
    """
    from diffusers import WanTransformer3DModel

    return any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules)


def cast(transformer: nn.Module, dtype: torch.dtype) -> None:
    """Bring a ``WanTransformer3DModel`` to a dtype, but for what is kept exact."""
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept_exact(name) else dtype)
