"""Files of tensors: read without running code, loaded strictly."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llrag_cli.errors import DamagedFileError, LlragError
from llrag_cli.files.guarded import reason_of, shortened
from llrag_cli.files.headers import read_header
from llrag_cli.files.resources import out_of_memory

State = dict[str, Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEADER_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
SHARED = 4  # tensors of a pickled checkpoint that may be views of the same bytes


def read_file(path: Path) -> Any:
    """The content of a checkpoint: nested dicts of tensors for ``.pt``, one flat dict for safetensors."""
    try:
        if path.exists() and not path.is_file():  # a device may never end
            raise ValueError("it is not a regular file")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            read_header(path)
            return load_file(path)
        _require_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_within(content, path.stat().st_size)
        return content
    except FileNotFoundError:
        raise LlragError(f"`{path}` does not exist", hint="check the path, or download the weights again") from None
    except pickle.UnpicklingError as error:
        raise damaged(path, ValueError(_refused(error))) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        if out_of_memory(error):
            raise
        raise damaged(path, error) from error


def read_state(path: Path, *, model: str) -> State:
    """The tensors of a checkpoint that holds them by name, and nothing else."""
    content = read_file(path)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise LlragError(f"`{path}` does not hold tensors by name", hint=f"these are not the weights of {model}")
    return dict(content)


def write_file(state: State, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write safetensors; equal tensors and metadata give equal bytes, which the library alone does not promise."""
    from safetensors.torch import save_file

    save_file(state, path, metadata=dict(metadata))
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(metadata.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise RuntimeError(f"the header of {path.name} is {length} bytes long, {len(text)} when it is sorted")
        file.seek(8)
        file.write(text.ljust(length))


def _refused(error: pickle.UnpicklingError) -> str:
    """Why a pickle is not read. The text of torch advises to switch the protection off, so it is not passed on."""
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"it asks for `{shortened(code[1])}`, and only tensors are read" if code else "it does not hold tensors only"


def read_shapes(path: Path) -> Any:
    """As ``read_file``, with tensors on the meta device: of safetensors only the header is read."""
    if path.suffix != ".safetensors":
        return _on_meta(read_file(path))
    try:
        return {
            name: torch.empty(entry.shape, dtype=_HEADER_DTYPES.get(entry.dtype, torch.float32), device="meta")
            for name, entry in read_header(path).entries.items()
        }
    except FileNotFoundError:
        raise LlragError(f"`{path}` does not exist", hint="check the path, or download the weights again") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise damaged(path, error) from error


def _require_stored(path: Path) -> None:
    """Raise an error for a pickled checkpoint that is no archive, or unpacks to more than it is."""
    with path.open("rb"):  # a file that is missing or may not be read is an error of its own
        pass
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive as `torch.save` writes them")
    with zipfile.ZipFile(path) as archive:
        if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
            raise ValueError("it is compressed")
        for each in archive.infolist():  # torch allows `bytearray(10**11)`, which no checkpoint needs
            if each.filename.endswith("data.pkl") and b"bytearray" in archive.read(each):
                raise ValueError("it holds a byte array, which may be of any size")


def _require_within(content: Any, size: int) -> None:
    """Raise an error if tensors claim more bytes than their file has, as those of stride 0 do, or have no values."""
    claimed = 0
    for tensor in _tensors(content):
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError("it holds tensors of another kind than plain numbers")
        claimed += tensor.numel() * tensor.element_size()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or claimed > SHARED * size:
            raise ValueError("its tensors are larger than the file")


def _tensors(content: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value)


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
        return read_header(path).metadata
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def stored_dtype(path: Path) -> str | None:
    """The dtype a checkpoint was rounded to when it was converted; None for any other file."""
    return read_metadata(path).get("dtype")


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """The error for a checkpoint that its library cannot read."""
    return DamagedFileError(path, shortened(reason_of(error), 300))


def require_tensors(state: Mapping[str, Tensor], names: Iterable[str], *, source: str, model: str) -> None:
    """Raise an error unless a state dict has the tensors that the sizes of a model are read from."""
    missing = [name for name in names if name not in state]
    if missing:
        raise LlragError(f"`{source}` lacks {name_some(missing)}", hint=f"these are not the weights of {model}")


def require_axes(state: Mapping[str, Tensor], axes: Mapping[str, int], *, source: str, model: str) -> None:
    """As ``require_tensors``; none of them may be empty or have another number of axes."""
    require_tensors(state, axes, source=source, model=model)
    for name, count in axes.items():
        if state[name].ndim != count or not state[name].numel():
            raise LlragError(
                f"`{source}` has `{shortened(name)}` of shape {[*state[name].shape]}, not of {count} axes",
                hint=f"these are not the weights of {model}",
            )


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
    require_floating(state, source=source)
    module.load_state_dict(state, strict=True, assign=True)


def require_floating(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise an error if a tensor of weights or latents holds integers."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise LlragError(
                f"`{source}` has `{shortened(name)}` in {dtype}, not in a floating-point type",
                hint="the file is damaged, or was written by another program",
            )


def require_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise an error if a tensor of weights has NaN or infinite values."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise LlragError(
                f"`{source}` has values in `{shortened(name)}` that are not finite",
                hint="the file is damaged; replace it",
            )


def name_some(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    listed = list(names)
    shown = ", ".join(f"`{shortened(name)}`" for name in listed[:3])
    return f"{shown} and {len(listed) - 3} more" if len(listed) > 3 else shown or "none"
