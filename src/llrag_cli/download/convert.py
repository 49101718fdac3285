"""Converts released checkpoints to safetensors in the dtype they run in, which load faster."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from llrag_cli.files.durable import replacing
from llrag_cli.files.tensors import DTYPES, State, read_file, write_file
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
    """Write a checkpoint as safetensors under its original tensor names; ``target`` appears once it is complete.

    The source is memory-mapped, so peak memory is about the size of the result. Raises ``LlragError``, before
    anything is written, if the checkpoint is not a model of this kind.
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
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    with (
        replacing(target) as partial,
        # safetensors writes to a temporary file of its own, which stays when the process is killed
        TemporaryDirectory(prefix=f"{target.name}.", suffix=".partial", dir=target.parent) as scratch,
    ):
        converted = Path(scratch) / target.name
        write_file(state, converted, metadata=metadata)
        converted.replace(partial)
