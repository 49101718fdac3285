"""Linear layers in eight bits, by torchao: which they are, where that is possible, and a copy on disk.

Eight bits are the products of attention and feed-forward; norms, embeddings, modulation, patches and the head stay as
they are. Weights have a scale for each output channel; activations are rounded as they come, with a scale for each
token, so a video does not depend on the batch. Nothing here imports torch before it has to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llrag_cli.config import BackboneConfig, EightBit, RunConfig
from llrag_cli.errors import LlragError, MissingTorchaoError, UsageError

if TYPE_CHECKING:
    import torch

    from llrag_cli.files.tensors import State

_LAYERS = re.compile(r"blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ffn\.net\.(0\.proj|2))")
FP8_CAPABILITY = (8, 9)
_ROOT = "transformer."  # of names on disk: torchao takes none without a dot
ROW = 4  # bytes of the scale of an output channel


def require_torchao(config: RunConfig) -> None:
    """Raise an error if a configuration asks for eight bits and torchao is not installed."""
    if config.backbone.quantize is not None and find_spec("torchao") is None:
        raise MissingTorchaoError


def require_eight_bit(
    kind: EightBit | None, *, device: torch.device, dtype: torch.dtype, compiled: bool, offload: bool
) -> None:
    """Raise ``UsageError`` unless eight-bit layers of a kind run on a device, in this way."""
    import torch

    if kind is None:
        return
    if offload:
        raise UsageError(
            "eight-bit weights stay on the device",
            hint="leave out either eight bits or keeping the weights on the host",
        )
    if kind == "int8":
        if device.type == "cuda" and not compiled:  # torchao prints an operand of each product to look at its class
            raise UsageError(
                "`int8` on a GPU needs compiled layers: otherwise torchao waits for the GPU in each of them",
                hint="compile them, or use `fp8` where the GPU has it",
            )
        return
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < FP8_CAPABILITY:
        here = (
            "a CPU" if capability is None else "{} with {}.{}".format(torch.cuda.get_device_name(device), *capability)
        )
        raise UsageError(f"`fp8` needs a GPU of compute capability 8.9 or more, and this is {here}", hint="use `int8`")
    if dtype != torch.bfloat16:
        raise UsageError("`fp8` computes in bfloat16", hint="choose the dtype bfloat16, or `int8`")


def is_eight_bit(parameter: str) -> bool:
    """Whether a parameter of ``WanTransformer3DModel``, by its name there, becomes eight bits."""
    module, _, kind = parameter.rpartition(".")
    return kind == "weight" and _LAYERS.fullmatch(module) is not None


def eight_bit_bytes(shape: Iterable[int]) -> int:
    """Bytes of a weight [out, in] in eight bits, with its scales."""
    rows, columns = shape
    return rows * (columns + ROW)


def quantize(transformer: Any, kind: EightBit) -> None:
    """Round the layers of a ``WanTransformer3DModel`` to eight bits, where they are."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )
    from torchao.quantization.quantize_.common import KernelPreference

    config: Any
    if kind == "int8":
        config = Int8DynamicActivationInt8WeightConfig(granularity=PerRow(), set_inductor_config=False)
    else:
        config = Float8DynamicActivationFloat8WeightConfig(
            granularity=PerRow(), kernel_preference=KernelPreference.TORCH, set_inductor_config=False
        )
    quantize_(transformer, config, filter_fn=lambda _, name: _LAYERS.fullmatch(name) is not None)


class EightBitFile:
    """A transformer in eight bits beside the checkpoint that it was made from, for the next start.

    Its name is made of the checkpoint's and LoRA's names, sizes and times, the settings, and torchao's version.
    """

    def __init__(self, config: BackboneConfig, files: Iterable[Path], *, dtype: torch.dtype) -> None:
        checkpoint, *others = files
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (checkpoint, *others)]
        settings = [config.quantize, config.ema, config.lora_alpha if others else None, str(dtype)]
        identity = json.dumps([stamps, settings, version("torchao")])
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.path = checkpoint.with_name(f"{checkpoint.stem}.{config.quantize}-{key}.safetensors")

    def read(self) -> State | None:
        """Tensors by their names in ``WanTransformer3DModel``; None if there is no such file, or it is damaged."""
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

        from llrag_cli.files.tensors import read_file, read_metadata

        if not self.path.exists():
            return None
        try:
            metadata = read_metadata(self.path)
            state, left = unflatten_tensor_state_dict(read_file(self.path), metadata)
        except (LlragError, LookupError, ValueError, TypeError, AttributeError):
            return None
        return None if left else {name.removeprefix(_ROOT): tensor for name, tensor in state.items()}

    def write(self, transformer: Any) -> None:
        """Keep a transformer; where that is not possible, the next start takes as long as this one."""
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        from llrag_cli.files.durable import replacing
        from llrag_cli.files.tensors import write_file

        tensors, metadata = flatten_tensor_state_dict(
            {f"{_ROOT}{name}": tensor for name, tensor in transformer.state_dict().items()}
        )
        with suppress(LlragError), replacing(self.path) as partial:
            write_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata=metadata)
