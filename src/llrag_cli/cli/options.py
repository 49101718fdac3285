"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cache.sharing import SHARINGS, Sharing
from llrag_cli.errors import UsageError, closest
from llrag_cli.files.guarded import shortened

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig

# Headings of help pages.
MEMORY: Any = {"rich_help_panel": "Memory"}
COMPUTING: Any = {"rich_help_panel": "Computing"}
MANY: Any = {"rich_help_panel": "Many videos"}


def parse_seconds(text: str | float) -> float:
    """``90``, ``90s``, ``2m``, ``1m30s`` or ``1:30`` as seconds; typer also passes defaults, which are numbers."""
    if not isinstance(text, str):
        return text
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", text)
    units = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    match = clock or units
    if match is not None and any(match.groups()):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"`{text}` is not a length of time", hint="for example `30`, `90s`, `2m` or `1:30`") from None


def parse_dtype(text: str) -> str:
    """The name of a dtype, or ``auto``."""
    names = ("auto", "float32", "bfloat16", "float16")
    if text not in names:
        raise UsageError(f"unknown dtype `{text}`", hint=closest(text, names))
    return text


def parse_decoder(text: str) -> str:
    """The name of a decoder."""
    if text not in ("full", "tiny"):
        raise UsageError(f"unknown decoder `{text}`", hint=closest(text, ("full", "tiny")))
    return text


def parse_sharing(text: str) -> Sharing:
    """Which buffers layers share."""
    for name in SHARINGS:
        if text == name:
            return name
    raise UsageError(f"layers cannot share `{text}`", hint=closest(text, SHARINGS))


def parse_quantize(text: str) -> str:
    """The name of a kind of eight-bit layers."""
    if text not in ("int8", "fp8"):
        raise UsageError(f"unknown kind of eight-bit layers `{text}`", hint=closest(text, ("int8", "fp8")))
    return text


def parse_attention(text: str) -> str:
    """The name of an attention backend, or ``auto``. Whether it works here, is known once torch is imported."""
    from llrag_cli.models.attention import require_attention

    require_attention(text)
    return text


def parse_device(text: str) -> str:
    """The name of a device, or ``auto``. Whether this machine has it, is known once torch is imported."""
    if not re.fullmatch(r"auto|cpu|meta|mps|(cuda|xpu)(:\d+)?", text):
        raise UsageError(f"unknown device `{text}`", hint="`auto`, `cpu`, `cuda` or `cuda:1`")
    return text


Seconds: Any = {"parser": parse_seconds, "metavar": "TIME"}
BackboneName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Bundled preset (tiny, self-forcing, causal-forcing, longlive; more in `llrag presets`) or a YAML file",
    ),
]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Size of the picture in pixels, for example 832x480")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset; repeatable")
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME=SETTINGS",
        help='Another memory: a name, and settings of the preset that differ, for example k2="memory.retrieved=2"; '
        "repeatable",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]
Backend = Annotated[
    str,
    typer.Option(help="Models of the metrics: offline (included in packages) or official (VBench-Long's, downloaded)"),
]

Rag = Annotated[
    bool | None,
    typer.Option("--rag/--no-rag", help="Retrieve past frames, or use the plain sliding window", **MEMORY),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="STRATEGY",
        help="Memory strategy instead of the preset's; `llrag presets strategies` lists them",
        **MEMORY,
    ),
]
Encoder = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Retrieval encoder used to look up past frames", **MEMORY)
]
Archive = Annotated[
    str | None,
    typer.Option(
        metavar="TIER",
        help="Where keys and values of past frames are kept: device, host, disk (exact), host-int8, recompute "
        "(approximate); auto takes the first exact one that fits",
        **MEMORY,
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory limit on the device and on the host, for example 8GB; --archive is chosen to fit",
        **MEMORY,
    ),
]

DecoderName = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        parser=parse_decoder,
        metavar="DECODER",
        help="full (the default), the VAE's own; tiny, a small one for previews of Wan backbones, many times as fast",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        parser=parse_device,
        metavar="DEVICE",
        help="cpu, cuda or cuda:1; auto is the first GPU, or else the CPU",
        **COMPUTING,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        parser=parse_dtype,
        metavar="DTYPE",
        help="float32, bfloat16 or float16; auto depends on backbone and device",
        **COMPUTING,
    ),
]
Offload = Annotated[
    bool,
    typer.Option("--offload", help="Keep weights on the host and copy them to the GPU layer by layer", **COMPUTING),
]
ShareBuffers = Annotated[
    Sharing,
    typer.Option(
        "--share-buffers",
        parser=parse_sharing,
        metavar="BUFFERS",
        help="Buffers that all layers share, and fill anew in every pass: none; values, which needs 1.7 GB less GPU "
        "memory at full size and costs little time; all, keys too, which needs 3.3 GB less and costs more",
        **COMPUTING,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        parser=parse_attention,
        metavar="BACKEND",
        help="Attention backend of diffusers: native, _native_cudnn, flash, sage, ...; auto is the fastest on a GPU, "
        "found by trial once, and native on a CPU",
        **COMPUTING,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        parser=parse_quantize,
        metavar="KIND",
        help="Compute attention and feed-forward layers in eight bits: int8, which needs --compile on a GPU, or fp8, "
        "which needs a GPU of compute capability 8.9 or higher; `pip install 'llrag\\[quantize]'`",
        **COMPUTING,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile layers of backbone and full decoder: a slow start, then faster blocks", **COMPUTING
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs",
        help="Record denoising passes as CUDA graphs, which saves the host's time: for frame-wise backbones; "
        "experimental, not yet tried on a GPU",
        **COMPUTING,
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast", help="Let a GPU choose its fastest kernels: the same seed may give other bytes", **COMPUTING
    ),
]

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Where jobs run: local, local:N (processes), ray[:ADDRESS][?gpus=0.5] (GPUs per job)",
        **MANY,
    ),
]


def configuration(
    backbone: str | None,
    *,
    default: str = "tiny",
    rag: bool | None = None,
    memory: str | None = None,
    encoder: Path | None = None,
    archive: str | None = None,
    size: str | None = None,
    settings: Sequence[str] = (),
) -> RunConfig:
    """The configuration that options ask for; does not import torch. Raises ``UsageError`` for any wrong name."""
    from llrag_cli.memory.strategies import RetrievalMemory
    from llrag_cli.presets import load_config, with_settings

    if rag is False:
        if memory not in (None, "none"):
            raise UsageError(f"`--no-rag` and `--memory {memory}` contradict each other", hint="give one of them")
        memory = "none"
    config = load_config(backbone or default, memory=memory)
    if size is not None:
        config = with_settings(config, size_settings(config, size, keys_chosen=_chooses_keys(encoder, settings)))
    retrieval = [*encoder_settings(encoder), *archive_settings(archive)]
    if retrieval and not isinstance(config.memory, RetrievalMemory):
        option = "encoder" if encoder is not None else "archive"
        raise UsageError(
            f"`--{option}` applies to retrieval, and the memory strategy is `{config.memory.strategy}`",
            hint=f"leave out `--{option}`, or name another strategy with `--memory`",
        )
    config = with_settings(config, [*retrieval, *settings])
    if rag and not isinstance(config.memory, RetrievalMemory):
        raise UsageError(
            f"`--rag` retrieves frames, and the memory strategy of `{config.name}` is `{config.memory.strategy}`",
            hint="name a strategy with `--memory`, for example `--memory nearest`",
        )
    return config


def require_recordable(device: str, *, cuda_graphs: bool, offload: bool, sharing: Sharing) -> None:
    """Refuse `--cuda-graphs` where it is known without importing torch that passes cannot be recorded."""
    for option, is_given in (("offload", offload), ("share-buffers", sharing != "none")):
        if cuda_graphs and is_given:
            raise UsageError(f"`--cuda-graphs` and `--{option}` cannot be combined", hint="give one of them")
    if cuda_graphs and (device == "cpu" or (device == "auto" and version("torch").endswith("+cpu"))):
        raise UsageError("`--cuda-graphs` needs a GPU", hint="leave it out on a CPU")


def note_fast(device: str, *, fast: bool) -> None:
    """Say what ``--fast`` gives up."""
    from llrag_cli.cli import console

    if fast:
        console.note(
            "fast: the same seed may give other bytes"
            if device == "cuda"
            else "`--fast` changes nothing on a CPU, which gives the same bytes in any case"
        )


def _chooses_keys(encoder: Path | None, settings: Sequence[str]) -> bool:
    return encoder is not None or any(setting.startswith(("memory.keys", "memory.encoder")) for setting in settings)


def size_settings(config: RunConfig, size: str, *, keys_chosen: bool) -> list[str]:
    """What ``--size`` changes: height and width, and how frames are compared where the encoder does not fit."""
    from llrag_cli import presets
    from llrag_cli.cli import console

    step = config.latent_space.spatial_ratio * config.latent_space.patch_size
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not width or not height or width % step or height % step:
        raise UsageError(
            f"`--size {shortened(size)}` is not a valid size of `{config.name}`",
            hint=f"width and height are multiples of {step} pixels, for example {config.width}x{config.height}",
        )
    changes = presets.size_settings(config, width, height, keys_chosen=keys_chosen)
    if "memory.keys=average" in changes:
        console.note(
            f"the retrieval encoder takes frames of {config.width}x{config.height}; at {size} frames are compared by "
            "average pooling (`memory.keys=average`)"
        )
    return changes


def encoder_settings(encoder: Path | None) -> list[str]:
    """What ``--encoder`` changes."""
    import json

    if encoder is None:
        return []
    if not encoder.is_file():
        raise UsageError(f"no such file: `{encoder}`", hint="`llrag train-encoder` trains a retrieval encoder")
    return ["memory.keys=encoder", f"memory.encoder={json.dumps(str(encoder.resolve()))}"]


def archive_settings(archive: str | None) -> list[str]:
    """What ``--archive`` changes."""
    from llrag_cli.cache.tiers import TIERS

    if archive is None:
        return []
    if archive not in ("auto", *TIERS):
        raise UsageError(f"unknown archive `{archive}`", hint=closest(archive, ("auto", *TIERS)))
    return [f"memory.archive={archive}"]


def given(context: typer.Context, *names: str) -> list[str]:
    """Which of the named parameters were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
