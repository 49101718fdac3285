"""How much memory a run will hold, part by part, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from llrag_cli.backbones.base import WanBase
from llrag_cli.backbones.cache import ROOM
from llrag_cli.backbones.checkpoints import diffusers_name, kept_exact, transformer_arguments, transformer_config
from llrag_cli.config import ModelShape, RunConfig
from llrag_cli.errors import LlragError
from llrag_cli.files.places import human
from llrag_cli.memory.encoder import EncoderConfig
from llrag_cli.weights import needed_files, peek

Place = Literal["device", "host"]
GIGA = 1e9


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    name: str
    bytes: int
    place: Place


@dataclass(frozen=True)
class Sizes:
    """What of a transformer decides its memory."""

    weights: int  # bytes, in the type it runs in
    dim: int
    layers: int
    ffn: int
    channels: int
    patch: int  # latent pixels of a token
    item: int  # bytes of an activation


# Wan2.1-T2V-1.3B with weights of one byte, for plans made before anything is downloaded
WAN_1_3B = Sizes(weights=1_418_996_800, dim=1536, layers=30, ffn=8960, channels=16, patch=4, item=1)


@dataclass(frozen=True)
class Budget:
    """The parts of a run, and what the device and the host can give."""

    parts: tuple[Part, ...]
    device: torch.device
    available: dict[Place, int | None]  # bytes; None where the system does not tell

    def total(self, place: Place) -> int:
        """Bytes expected at the peak."""
        return sum(part.bytes for part in self.parts if part.place == place)

    @property
    def short(self) -> Place | None:
        """Where the peak would not fit, if anywhere."""
        places: tuple[Place, ...] = ("device", "host")
        for place in places:
            room = self.available[place]
            if room is not None and self.total(place) > room:
                return place
        return None

    def sentence(self) -> str:
        """The plan in one line."""
        said = []
        places: tuple[Place, ...] = ("device", "host")
        for place in places:
            parts = [part for part in self.parts if part.place == place]
            if not parts:
                continue
            named = ", ".join(
                f"{part.name} {human(part.bytes)}" for part in sorted(parts, key=lambda part: -part.bytes)
            )
            room = self.available[place]
            of = "" if room is None else f" of {human(room)} free"
            where = str(self.device) if place == "device" else "the host"
            said.append(f"{human(self.total(place))}{of} on {where} ({named})")
        return f"memory: {'; '.join(said)}"

    def require(self, config: RunConfig) -> None:
        """Raise an error that says what to change, if the run cannot fit."""
        place = self.short
        if place is None:
            return
        where = str(self.device) if place == "device" else "the host"
        largest = max((part for part in self.parts if part.place == place), key=lambda part: part.bytes)
        raise LlragError(
            f"this run needs {self.total(place) / GIGA:.1f} GB on {where}, which has "
            f"{(self.available[place] or 0) / GIGA:.1f} GB free; the most goes to {largest.name}",
            hint=self._advice(config, place, largest),
        )

    def _advice(self, config: RunConfig, place: Place, largest: Part) -> str:
        ways = []
        if largest.name.startswith("archive"):
            ways.append("make a shorter video, or use `--no-rag`, which keeps no archive")
        if place == "device" and self.device.type != "cpu":
            if config.memory.archive == "device" and any(part.name.startswith("archive") for part in self.parts):
                ways.append("keep the archive on the host with `--set memory.archive=host`")
            ways.append("add `--offload`")
        if config.memory.window is not None and "K/V" in largest.name:
            ways.append("shorten the window, for example `--set memory.window=9 --set memory.retrieved=3`")
        ways.append("make the picture smaller with `--set backbone.height=` and `--set backbone.width=`")
        return "; ".join(ways)


def plan(
    config: RunConfig,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    offload: bool = False,
    batch: int = 1,
    shape: ModelShape | None = None,
) -> Budget:
    """The memory that a configuration will hold at its peak; reads headers only.

    Where weights are not there yet, the sizes of the released Wan2.1-T2V-1.3B are taken; with a ``shape``, its own.
    """
    files = needed_files(config, folder)
    sizes = transformer_sizes(config, files, dtype) if shape is None else sizes_of(shape, dtype)
    parts = [*_backbone(config, sizes, offload=offload), *_caches(config, sizes, seconds=seconds, batch=batch)]
    parts += _history(config, sizes, seconds=seconds, batch=batch)
    if config.backbone.family == "wan":
        base = None if shape is not None else files["backbone.base"]
        parts += _decoder(config, base, dtype, width=None if shape is None else shape.vae_base_dim)
    on_host = device.type == "cpu"  # then both are the same memory
    parts = [Part(part.name, part.bytes, "device") for part in parts] if on_host else parts
    room: dict[Place, int | None] = {"device": free_memory(device), "host": None if on_host else free_memory(None)}
    return Budget(tuple(part for part in parts if part.bytes), device, room)


def transformer_sizes(config: RunConfig, files: dict[str, Path], dtype: torch.dtype) -> Sizes:
    """Sizes of a configuration's transformer from the header of its checkpoint."""
    item = dtype.itemsize
    if config.backbone.family == "tiny":
        from llrag_cli.tiny.model import TRANSFORMER

        arguments: dict[str, Any] = TRANSFORMER
        weights = 8 * 2**20
    elif not files["backbone.weights"].exists():
        return dataclasses.replace(WAN_1_3B, weights=WAN_1_3B.weights * item, item=item)
    else:
        state = peek(files["backbone.weights"], ema=config.backbone.ema)
        arguments = transformer_config(state, heads=1)
        weights = sum(
            tensor.numel() * (4 if kept_exact(diffusers_name(name)) else item) for name, tensor in state.items()
        )
    dim = arguments["num_attention_heads"] * arguments["attention_head_dim"]
    return Sizes(
        weights=weights,
        dim=dim,
        layers=arguments["num_layers"],
        ffn=arguments["ffn_dim"],
        channels=arguments["in_channels"],
        patch=math.prod(arguments["patch_size"]),
        item=item,
    )


def sizes_of(shape: ModelShape, dtype: torch.dtype) -> Sizes:
    """Sizes of a transformer of a shape, built on the meta device."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**transformer_arguments(shape))
    item = dtype.itemsize
    weights = sum(
        parameter.numel() * (4 if kept_exact(name) else item) for name, parameter in transformer.named_parameters()
    )
    return Sizes(
        weights=weights,
        dim=shape.num_attention_heads * shape.attention_head_dim,
        layers=shape.num_layers,
        ffn=shape.ffn_dim,
        channels=shape.in_channels,
        patch=math.prod(shape.patch_size),
        item=item,
    )


def _tokens(config: RunConfig, sizes: Sizes) -> int:
    return config.backbone.height * config.backbone.width // sizes.patch


def _backbone(config: RunConfig, sizes: Sizes, *, offload: bool) -> list[Part]:
    block = config.backbone.frames_per_block * _tokens(config, sizes)
    working = block * (3 * sizes.ffn + 12 * sizes.dim) * sizes.item
    if not offload:
        return [Part("weights", sizes.weights, "device"), Part("activations (estimate)", working, "device")]
    share = 2 * sizes.weights // max(1, sizes.layers)
    return [
        Part("weights in use", share, "device"),
        Part("weights", sizes.weights, "host"),
        Part("activations (estimate)", working, "device"),
    ]


def _caches(config: RunConfig, sizes: Sizes, *, seconds: float, batch: int) -> list[Part]:
    memory = config.memory
    frames = config.latent_frames(seconds)
    frame = 2 * _tokens(config, sizes) * sizes.dim * sizes.layers * sizes.item * batch  # keys and values
    attended = frames if memory.window is None else min(frames, memory.window)
    parts = [Part("K/V that a block attends to", attended * frame, "device")]
    recalls = memory.policy == "retrieval" and memory.retrieved > 0
    if recalls:
        place: Place = "host" if memory.archive == "host" else "device"
        parts.append(Part("archive of K/V", (frames if frames <= ROOM else _grown(frames)) * frame, place))
    if not recalls or memory.archive == "host":
        parts.append(Part("K/V window", attended * frame, "device"))
    return parts


def _grown(frames: int) -> int:
    """Room for frames that doubled whenever it ran out; at the last doubling the old was held beside it."""
    capacity = 1
    while capacity < frames:
        capacity *= 2
    return capacity + capacity // 2


def _history(config: RunConfig, sizes: Sizes, *, seconds: float, batch: int) -> list[Part]:
    frame = sizes.channels * config.backbone.height * config.backbone.width * sizes.item
    key = 4 * (EncoderConfig().latent_dim if config.memory.keys == "encoder" else sizes.channels)
    return [Part("history", _grown(config.latent_frames(seconds)) * (frame + key) * batch, "device")]


def _decoder(config: RunConfig, base: Path | None, dtype: torch.dtype, *, width: int | None) -> list[Part]:
    size = config.backbone.height, config.backbone.width
    weights, working = decoder_bytes(None if base is None else str(base), *size, dtype, base_dim=width)
    return [Part("VAE", weights, "device"), Part("decoding (estimate)", working, "device")]


@cache
def decoder_bytes(
    base: str | None, height: int, width: int, dtype: torch.dtype, *, base_dim: int | None = None
) -> tuple[int, int]:
    """Bytes of a VAE's weights, and of its temporal cache and largest activations while it decodes.

    The decoder is walked on the meta device, which computes shapes only. It is that of a folder, or Wan's own with
    ``base_dim`` channels.
    """
    from diffusers import AutoencoderKLWan

    folder = WanBase(Path(base or ""))
    with torch.device("meta"):
        if base is None or not (folder.folder / "vae").exists():
            vae = AutoencoderKLWan(base_dim=base_dim or 96)
        else:
            vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(str(folder.folder / "vae")))
    largest = 0

    def measure(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel())

    for module in vae.decoder.modules():
        module.register_forward_hook(measure)
    vae.clear_cache()
    for index in range(2):
        vae._conv_idx = [0]
        opens = {"first_chunk": True} if index == 0 else {}
        latent = torch.empty(1, vae.config.z_dim, 1, height, width, device="meta")
        vae.decoder(latent, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **opens)
    kept = sum(part.numel() for part in vae._feat_map if isinstance(part, torch.Tensor))
    weights = sum(parameter.numel() for parameter in vae.parameters())
    return weights * dtype.itemsize, (kept + 4 * largest) * dtype.itemsize


def free_memory(device: torch.device | None) -> int | None:
    """Bytes free on a device, on the host for None or a CPU; None where the system does not tell."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None
