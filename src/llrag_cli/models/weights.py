"""Which files a configuration reads, and what their headers tell before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.wan.checkpoints import State, generator_state, read_file, unreadable
from llrag_cli.models.wan.parts import WanBase, base_folder

EMBEDDED_ENCODER = Path(__file__).parent / "embedded" / "weights" / "encoder.safetensors"
_ITEMS = {  # what `llrag download weights` calls the file of a bundled preset
    "self_forcing.pt": "self-forcing",
    "causal_forcing.pt": "causal-forcing",
    "causal_forcing_framewise.pt": "causal-forcing-framewise",
    "causal_forcing_2step.pt": "causal-forcing-2step",
    "causal_forcing_1step.pt": "causal-forcing-1step",
    "longlive_base.pt": "longlive",
    "longlive_lora.pt": "longlive",
    "ae_latent_mem.pt": "encoder",
}


def needed_files(config: RunConfig, folder: Path) -> dict[str, Path]:
    """What a configuration reads from the weights folder: file or folder by the setting that names it.

    Where a checkpoint has been converted to safetensors, that is read.
    """
    backbone, memory = config.backbone, config.memory
    named = {"backbone.weights": backbone.weights, "backbone.lora": backbone.lora}
    if isinstance(memory, RetrievalMemory) and memory.keys == "encoder":
        named["memory.encoder"] = memory.encoder or (str(EMBEDDED_ENCODER) if backbone.family == "tiny" else None)
    files = {setting: _converted(folder / name) for setting, name in named.items() if name is not None}
    if backbone.base is not None:
        files["backbone.base"] = base_folder(folder, backbone.base)
    return files


def _converted(path: Path) -> Path:
    converted = path.with_suffix(".safetensors")
    return converted if converted.exists() else path


def missing_files(config: RunConfig, folder: Path) -> dict[str, Path]:
    """Those of the needed files that are not there, by setting."""
    missing = {}
    for setting, path in needed_files(config, folder).items():
        if not path.exists():
            missing[setting] = path
        elif setting == "backbone.base" and (parts := WanBase(path).missing()):
            missing[setting] = parts[0]
    return missing


def require_files(config: RunConfig, folder: Path) -> None:
    """Raise an error that names the first file that is not there, and the command that fetches it."""
    if config.backbone.family == "wan":
        for setting in ("weights", "base"):
            if getattr(config.backbone, setting) is None:
                raise UsageError(f"`backbone.{setting}` is not set", hint="a Wan backbone needs its files named")
        memory = config.memory
        if isinstance(memory, RetrievalMemory) and memory.keys == "encoder" and memory.encoder is None:
            raise UsageError(
                "`memory.keys` is `encoder` but `memory.encoder` names no file",
                hint="name it with `--encoder FILE`, or use `--set memory.keys=average`",
            )
    for setting, path in missing_files(config, folder).items():
        item = _ITEMS.get(config.backbone.weights or "", "") or "NAME"
        raise LlragError(
            f"the weights of `{config.name}` are not all there: no `{path}` (setting `{setting}`)",
            hint=f"`llrag download weights {item}` fetches them; LLRAG_WEIGHTS names the folder they are in; "
            "`--backbone tiny` needs none",
        )


def peek(path: Path, *, ema: bool) -> State:
    """A generator's tensors on the meta device, under original names: shapes and types without the data."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes = {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in names}
        except (SafetensorError, OSError) as error:
            raise unreadable(path, error) from error
        content: Any = {
            name: torch.empty(shape, dtype=_TYPES.get(kind, torch.float32), device="meta")
            for name, (shape, kind) in shapes.items()
        }
    else:
        content = read_file(path)
    return {name: tensor.to("meta") for name, tensor in generator_state(content, ema=ema, source=str(path)).items()}


_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
