"""Files of tensors: read without running code, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from llrag_cli.errors import DamagedFileError, LlragError

State = dict[str, Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADER_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_file(path: Path) -> Any:
    """The content of a checkpoint: nested dicts of tensors for ``.pt``, one flat dict for safetensors."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise LlragError(f"`{path}` does not exist", hint="check the path, or download the weights again") from None
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise damaged(path, error) from error


def read_shapes(path: Path) -> Any:
    """As ``read_file``, with tensors on the meta device: of safetensors only the header is read."""
    if path.suffix != ".safetensors":
        return _on_meta(read_file(path))
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {
                name: torch.empty(
                    part.get_shape(), dtype=_HEADER_DTYPES.get(part.get_dtype(), torch.float32), device="meta"
                )
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def _on_meta(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.to("meta")
    if isinstance(content, Mapping):
        return {name: _on_meta(value) for name, value in content.items()}
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            return dict(json.loads(stream.read(length)).get("__metadata__", {}))
    except (OSError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error


def stored_dtype(path: Path) -> str | None:
    """The dtype a checkpoint was rounded to when it was converted; None for any other file."""
    return read_metadata(path).get("dtype")


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """The error for a checkpoint that its library cannot read."""
    return DamagedFileError(path, (str(error) or type(error).__name__).splitlines()[0])


def require_tensors(state: Mapping[str, Tensor], names: Iterable[str], *, source: str, model: str) -> None:
    """Raise an error unless a state dict has the tensors that the sizes of a model are read from."""
    missing = [name for name in names if name not in state]
    if missing:
        raise LlragError(f"`{source}` lacks {name_some(missing)}", hint=f"these are not the weights of {model}")


def load_strictly(module: nn.Module, state: State, *, source: str) -> None:
    """Fill a module; a missing, extra or misshapen tensor is an error that names it, and nothing is loaded."""
    expected = module.state_dict()
    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    misshapen = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", extra)):
        if names:
            raise LlragError(
                f"`{source}` {problem} {name_some(names)}",
                hint="these weights belong to another model or are incomplete",
            )
    if misshapen:
        name = sorted(misshapen)[0]
        raise LlragError(
            f"`{source}` has `{name}` of shape {list(state[name].shape)}, not {list(expected[name].shape)}",
            hint="these weights belong to a model of another size",
        )
    module.load_state_dict(state, strict=True, assign=True)


def name_some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(f"`{name}`" for name in listed[:3])
    return f"{shown} and {len(listed) - 3} more" if len(listed) > 3 else shown or "none"
