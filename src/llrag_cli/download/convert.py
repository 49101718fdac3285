"""Released checkpoints rewritten as safetensors in the type they run in, so that the second start is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from llrag_cli.files.durable import replacing
from llrag_cli.files.tensors import DTYPES, State, read_file
from llrag_cli.memory.encoder import load_encoder
from llrag_cli.models.wan.checkpoints import (
    diffusers_name,
    generator_state,
    kept_exact,
    load_transformer,
    lora_state,
)


def convert(
    source: Path, target: Path, *, kind: Literal["generator", "lora", "encoder"], ema: bool, dtype: str
) -> None:
    """Write a checkpoint as safetensors under its original names; ``target`` appears only when it is whole.

    The source is memory-mapped, so that the peak is about the size of the result. What cannot be the kind of
    model it should be raises ``LlragError`` before anything is written.
    """
    label, metadata = source.name, {"format": "pt", "kind": kind}
    state: State
    if kind == "encoder":
        encoder = load_encoder(source)
        state = encoder.state_dict()
        metadata["config"] = encoder.config.model_dump_json()
    elif kind == "lora":
        state = {name: tensor.to(DTYPES[dtype]) for name, tensor in lora_state(read_file(source), source=label).items()}
        metadata["dtype"] = dtype
    else:
        state = generator_state(read_file(source), ema=ema, source=label)
        load_transformer({name: tensor.to("meta") for name, tensor in state.items()}, source=label, heads=1)
        state = {
            name: tensor.to(torch.float32 if kept_exact(diffusers_name(name)) else DTYPES[dtype])
            for name, tensor in state.items()
        }
        metadata["dtype"] = dtype
    hint = "make room or choose another folder with `--to`; what was fetched stays in the hub's cache"
    with replacing(target, hint=hint) as partial:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial, metadata=metadata)
