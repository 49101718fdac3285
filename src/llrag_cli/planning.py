"""How much memory a run will hold, part by part, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from llrag_cli.cache.archive import slots_of
from llrag_cli.cache.pages import Layout
from llrag_cli.cache.tiers import EXACT, TIERS, Tier
from llrag_cli.config import PLACES, ModelShape, Place, RunConfig
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.formatting import human
from llrag_cli.memory.encoder import EncoderConfig, embedding_size
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.wan.checkpoints import diffusers_name, kept_exact, transformer_arguments, transformer_config
from llrag_cli.models.wan.parts import WanBase
from llrag_cli.models.weights import needed_files, peek

GIGA = 1e9
SPARE = 0.9  # share of what is free that a tier chosen by plan may come to
NOT_EXACT: dict[str, str] = {  # measured in docs/performance.md
    "host-int8": "the archive is kept in eight bits (`host-int8`), which changes the video slightly",
    "recompute": "the archive is not kept (`recompute`): keys and values of retrieved frames are approximate",
}


@dataclass(frozen=True)
class Part:
    """Something that takes memory, or disk while the run lasts."""

    name: str
    bytes: int
    place: Place


@dataclass(frozen=True)
class Sizes:
    """What of a transformer decides its memory."""

    weights: int  # bytes, in the type it runs in
    dim: int
    heads: int
    layers: int
    ffn: int
    channels: int
    patch: int  # latent pixels of a token
    item: int  # bytes of an activation


# Wan2.1-T2V-1.3B with weights of one byte, for plans made before anything is downloaded
WAN_1_3B = Sizes(weights=1_418_996_800, dim=1536, heads=12, layers=30, ffn=8960, channels=16, patch=4, item=1)


@dataclass(frozen=True)
class Budget:
    """The parts of a run of a configuration, and what device, host and disk can give."""

    config: RunConfig  # with the tier of its archive settled
    parts: tuple[Part, ...]
    device: torch.device
    available: dict[Place, int | None]  # bytes; None where the system does not tell
    limit: int | None = None  # bytes that were allowed on the device, and on the host

    def total(self, place: Place) -> int:
        """Bytes expected at the peak."""
        return sum(part.bytes for part in self.parts if part.place == place)

    def room(self, place: Place) -> int | None:
        """Bytes that may be taken there."""
        given = [self.available[place], None if place == "disk" else self.limit]
        return min((each for each in given if each is not None), default=None)

    @property
    def short(self) -> Place | None:
        """Where the peak would not fit, if anywhere."""
        return self._short(1.0)

    def _short(self, share: float) -> Place | None:
        for place in PLACES:
            room = self.room(place)
            if room is not None and self.total(place) > share * room:
                return place
        return None

    @property
    def comfortable(self) -> bool:
        """Whether it fits and leaves something for what a plan does not see; a limit may be used up."""
        return self.short is None and dataclasses.replace(self, limit=None)._short(SPARE) is None

    def sentence(self) -> str:
        """The plan in one line."""
        said = []
        for place in PLACES:
            parts = [part for part in self.parts if part.place == place]
            if not parts:
                continue
            named = ", ".join(
                f"{part.name} {human(part.bytes)}" for part in sorted(parts, key=lambda part: -part.bytes)
            )
            room = self.available[place]
            of = "" if room is None else f" of {human(room)} free"
            said.append(f"{human(self.total(place))}{of} on {self.called(place)} ({named})")
        return f"memory: {'; '.join(said)}"

    def called(self, place: Place) -> str:
        """A place by its name."""
        return {"device": str(self.device), "host": "the host", "disk": "disk"}[place]

    def require(self) -> None:
        """Raise an error that says what to change, if the run cannot fit."""
        place = self.short
        if place is None:
            return
        largest = max((part for part in self.parts if part.place == place), key=lambda part: part.bytes)
        room = self.room(place) or 0
        limited = room == self.limit and room != self.available[place]
        which = f"where `--memory-budget` allows {human(room)}" if limited else f"which has {human(room)} free"
        raise LlragError(
            f"this run needs {human(self.total(place))} on {self.called(place)}, {which}; "
            f"the most goes to {largest.name}",
            hint=self._advice(place, largest),
        )

    def _advice(self, place: Place, largest: Part) -> str:
        ways, memory = [], self.config.memory
        if largest.name.startswith("archive"):
            ways.append("make a shorter video, or use `--no-rag`, which keeps no archive")
            tier = memory.archive if isinstance(memory, RetrievalMemory) else "auto"
            later = TIERS[TIERS.index(tier) + 1 :] if tier != "auto" else ()
            cheaper = [each for each in later if each != "host" or self.device.type != "cpu"]
            if cheaper:
                ways.append(f"keep the archive elsewhere with {' or '.join(f'`--archive {each}`' for each in cheaper)}")
        if place == "device" and self.device.type != "cpu":
            ways.append("add `--offload`")
        if memory.window is not None and "K/V" in largest.name and place != "disk":
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
    limit: int | None = None,
    scratch: Path | None = None,
    loaded: bool = False,
) -> Budget:
    """What a configuration will hold at its peak; reads headers only.

    Archive `auto` becomes the first exact tier that fits, `device`, `host` or `disk`; with a ``limit`` in bytes, on
    device and host each, also `host-int8` and `recompute` are tried after them. Where none fits, the plan is that of
    the last one tried. Where weights are not there yet, the sizes of the released Wan2.1-T2V-1.3B are taken, or those
    of a ``shape``; if they are ``loaded`` they count no more. Files of the archive will be in the folder ``scratch``.
    """
    files = needed_files(config, folder)
    sizes = transformer_sizes(config, files, dtype) if shape is None else sizes_of(shape, dtype)
    common = [] if loaded else _backbone(config, sizes, offload=offload)
    common += [*_history(config, files, sizes, seconds=seconds, batch=batch)]
    if config.backbone.family == "wan":
        base = None if shape is not None else files["backbone.base"]
        common += _decoder(config, base, dtype, width=None if shape is None else shape.vae_base_dim)
    on_host = device.type == "cpu"  # then device and host are the same memory
    room: dict[Place, int | None] = {
        "device": free_memory(device),
        "host": None if on_host else free_memory(None),
        "disk": free_disk(scratch or Path(tempfile.gettempdir())),
    }

    def with_tier(tier: Tier) -> Budget:
        chosen = config
        if isinstance(config.memory, RetrievalMemory):
            chosen = config.model_copy(update={"memory": config.memory.model_copy(update={"archive": tier})})
        parts = [*common, *_caches(chosen, tier, sizes, dtype, seconds=seconds, batch=batch)]
        if on_host:
            parts = [dataclasses.replace(part, place="device") if part.place == "host" else part for part in parts]
        return Budget(chosen, tuple(part for part in parts if part.bytes), device, room, limit)

    if not isinstance(config.memory, RetrievalMemory) or not config.memory.retrieves:
        return with_tier("device")
    if config.memory.archive != "auto":
        return with_tier(config.memory.archive)
    tried = (*EXACT, *(tier for tier in TIERS if tier not in EXACT and limit is not None))
    budgets = [with_tier(tier) for tier in tried]
    return next((budget for budget in budgets if budget.comfortable), budgets[-1])


def transformer_sizes(config: RunConfig, files: dict[str, Path], dtype: torch.dtype) -> Sizes:
    """Sizes of a configuration's transformer from the header of its checkpoint."""
    item = dtype.itemsize
    if config.backbone.family == "tiny":
        from llrag_cli.models.embedded.model import TRANSFORMER

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
    heads = arguments["num_attention_heads"]
    if "backbone.base" in files:
        heads = WanBase(files["backbone.base"]).heads() or max(1, dim // 128)
    return Sizes(
        weights=weights,
        dim=dim,
        heads=heads,
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
        heads=shape.num_attention_heads,
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


def _caches(
    config: RunConfig, tier: Tier, sizes: Sizes, dtype: torch.dtype, *, seconds: float, batch: int
) -> list[Part]:
    memory, block = config.memory, config.backbone.frames_per_block
    tokens, frames = _tokens(config, sizes), config.latent_frames(seconds)
    frame = 2 * tokens * sizes.dim * sizes.layers * sizes.item  # keys and values of one video
    attended = frames if memory.window is None else min(frames, memory.window)
    parts = [Part("K/V that a block attends to", attended * frame * batch, "device")]
    if memory.retrieves and tier == "device":
        return [*parts, Part("archive of K/V", frames * frame * batch, "device")]
    parts.append(Part("K/V window", attended * frame * batch, "device"))
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        return parts
    head = sizes.dim // sizes.heads
    layout = Layout.of((tokens, sizes.heads, head), dtype, eight_bit=tier == "host-int8")
    page = sizes.layers * layout.bytes * batch
    parts.append(Part("retrieved K/V", slots_of(tier, memory.retrieved) * page, "device"))
    if tier == "recompute":
        parts.append(Part("recomputing (estimate)", (memory.sink + 2 * block) * frame, "device"))
        latent = sizes.channels * config.backbone.height * config.backbone.width * sizes.item
        return [*parts, Part("archive of latents", frames * latent * batch, "disk")]
    return [*parts, Part("archive of K/V", frames * page, "disk" if tier == "disk" else "host")]


def _history(config: RunConfig, files: dict[str, Path], sizes: Sizes, *, seconds: float, batch: int) -> list[Part]:
    size = sizes.channels
    if isinstance(config.memory, RetrievalMemory) and config.memory.keys == "encoder":
        encoder = files.get("memory.encoder")
        size = embedding_size(encoder) if encoder is not None and encoder.exists() else EncoderConfig().latent_dim
    return [Part("keys of the history", 4 * size * config.latent_frames(seconds) * batch, "device")]


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


def free_disk(folder: Path) -> int | None:
    """Bytes free on the disk of a folder that may not be there yet; None where the system does not tell."""
    folder = folder.absolute()
    try:
        return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
    except OSError:
        return None


def parse_bytes(text: str) -> int:
    """``8GB``, ``500 MB`` or ``1.5e9`` as bytes; GB is 10**9, GiB 2**30."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", text, re.IGNORECASE)
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or not 1 <= amount < float("inf"):
        raise UsageError(f"`{text}` is no amount of memory", hint="for example `8GB` or `500MB`")
    power = 1 + "kmgt".index(match[2].lower()) if match[2] else 0
    return int(amount * (1024 if match[3] else 1000) ** power)


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
