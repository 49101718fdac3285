"""How much memory a run will hold, part by part, before anything is loaded."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from llrag_cli.cache.archive import slots_of
from llrag_cli.cache.pages import Layout
from llrag_cli.cache.rotary import TABLES
from llrag_cli.cache.sharing import Sharing
from llrag_cli.cache.tiers import EXACT, TIERS, Tier
from llrag_cli.config import LOCATIONS, Location, ModelShape, RunConfig
from llrag_cli.errors import DoesNotFitError, Remedy
from llrag_cli.files.resources import free_disk, free_memory
from llrag_cli.formatting import human
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder, embedding_size
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.family import TransformerSizes, family_of

COMFORTABLE = 0.9  # share of what is free that the archive `auto` fills
Scale = Literal["length", "picture"]
Phase = Literal["text", "video"]  # prompts are encoded before the transformer is read
PHASES: tuple[Phase, ...] = get_args(Phase)
WORKSPACES = 300_000_000  # bytes that CUDA's libraries take beside tensors; an estimate
CONTEXT = 500_000_000  # bytes that a CUDA context takes; an estimate, for cards that are not there
LENGTH: frozenset[Scale] = frozenset({"length"})
PICTURE: frozenset[Scale] = frozenset({"picture"})
SMALLER = 0.75  # share of what depends on the picture that a smaller one is expected to save, at most
NOT_EXACT: dict[str, str] = {  # measured in docs/performance.md
    "host-int8": "the archive is kept in eight bits (`host-int8`), which changes the video slightly",
    "recompute": "the archive is not kept (`recompute`): keys and values of retrieved frames are approximate",
}


@dataclass(frozen=True)
class Part:
    """Something that takes memory, or disk space while the run lasts."""

    name: str
    bytes: int
    location: Location
    scales: frozenset[Scale] = frozenset()  # with the length of the video, with the size of the picture
    phase: Phase = "video"


@dataclass(frozen=True)
class Budget:
    """The parts of a run of a configuration, and what device, host and disk can give."""

    config: RunConfig  # with the tier of its archive chosen
    parts: tuple[Part, ...]
    device: torch.device
    free: Mapping[Location, int | None]  # bytes; None where the system does not report it
    limit: int | None = None  # bytes allowed on the device, and on the host

    def total(self, location: Location) -> int:
        """Bytes expected at the peak: the most of any phase."""
        return sum(part.bytes for part in self.at_peak(location))

    def at_peak(self, location: Location) -> list[Part]:
        """The parts there of the phase that takes the most."""
        phases = [[part for part in self.parts if (part.location, part.phase) == (location, each)] for each in PHASES]
        return max(phases, key=lambda parts: sum(part.bytes for part in parts))

    def room(self, location: Location) -> int | None:
        """Bytes that may be taken there."""
        bounds = [self.free[location], None if location == "disk" else self.limit]
        return min((bound for bound in bounds if bound is not None), default=None)

    @property
    def short(self) -> Location | None:
        """Where the peak would not fit, if anywhere."""
        return self._short(1.0)

    def _short(self, share: float) -> Location | None:
        for location in LOCATIONS:
            room = self.room(location)
            if room is not None and self.total(location) > share * room:
                return location
        return None

    @property
    def comfortable(self) -> bool:
        """Whether it fits and leaves some of what is free for what a plan does not see; a limit may be used up."""
        return self.short is None and dataclasses.replace(self, limit=None)._short(COMFORTABLE) is None

    def beside(self, others: Sequence[Budget]) -> Budget:
        """The plan of this run and others at the same time, with the room that this one has alone."""
        return dataclasses.replace(self, parts=(*self.parts, *(part for other in others for part in other.parts)))

    def sentence(self) -> str:
        """The plan in one line."""
        totals = []
        for location in LOCATIONS:
            parts = self.at_peak(location)
            if not parts:
                continue
            named = ", ".join(
                f"{part.name} {human(part.bytes)}" for part in sorted(parts, key=lambda part: -part.bytes)
            )
            free = self.free[location]
            of = "" if free is None else f" of {human(free)} free"
            totals.append(f"{human(self.total(location))}{of} on {self.name_of(location)} ({named})")
        return f"memory: {'; '.join(totals)}"

    def name_of(self, location: Location) -> str:
        """A location as a person calls it."""
        return {"device": str(self.device), "host": "the host", "disk": "disk"}[location]

    def require(self) -> None:
        """Raise ``DoesNotFitError``, with what would help, if the run cannot fit."""
        location = self.short
        if location is None:
            return
        largest = max(self.at_peak(location), key=lambda part: part.bytes)
        room = self.room(location) or 0
        limited = room == self.limit and room != self.free[location]
        available = f"where the memory limit allows {human(room)}" if limited else f"which has {human(room)} free"
        archived = largest.name.startswith("archive")
        tiers = self._smaller_archives() if archived else []
        remedies: list[Remedy] = []
        excess = self.total(location) - room
        if "length" in largest.scales or self._scaling("length", location) >= excess:
            remedies.append("shorter")
        if archived:
            remedies.append("plain")
        if tiers:
            remedies.append("archive")
        if location == "device" and self.device.type != "cpu" and largest.phase == "video":
            remedies.append("offload")
        if self.config.memory.window is not None and "K/V" in largest.name and location != "disk":
            remedies.append("window")
        if SMALLER * self._scaling("picture", location) >= excess:
            remedies.append("smaller")
        if not remedies or largest.name.startswith(("weights", "text encoder")):
            remedies.append("model")
        raise DoesNotFitError(
            f"this run needs {human(self.total(location))} on {self.name_of(location)}, {available}; "
            f"the most goes to {largest.name}",
            remedies=remedies,
            tiers=tiers,
        )

    def _scaling(self, scale: Scale, location: Location) -> int:
        """Bytes there that depend on the length of the video, or on the size of its picture."""
        return sum(part.bytes for part in self.at_peak(location) if scale in part.scales)

    def _smaller_archives(self) -> list[Tier]:
        """The tiers after the chosen one that keep less where memory is short."""
        memory = self.config.memory
        if not isinstance(memory, RetrievalMemory) or memory.archive == "auto":
            return []
        later = TIERS[TIERS.index(memory.archive) + 1 :]
        return [tier for tier in later if tier != "host" or self.device.type != "cpu"]


def plan(
    config: RunConfig,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    references: int = 0,
    pinned: int = 0,
    switches: bool = False,
    prompts: Sequence[str] | None = None,
    offload: bool = False,
    batch: int = 1,
    shape: ModelShape | None = None,
    limit: int | None = None,
    scratch: Path | None = None,
    loaded: bool = False,
    sharing: Sharing = "none",
    cuda_graphs: bool = False,
    card: int | None = None,
) -> Budget:
    """What a configuration will hold at its peak; reads headers only.

    Archive `auto` becomes the first exact tier that fits, `device`, `host` or `disk`; with a ``limit`` in bytes, on
    device and host each, also `host-int8` and `recompute` are tried after them. Where none fits, the plan is that of
    the last one tried. Where weights are not there yet, their sizes are those of the released models, or those of a
    ``shape``; if they are ``loaded`` they are not counted. Files of the archive will be in the folder ``scratch``.
    ``references`` counts the latent frames of references, of which some are ``pinned``. ``switches`` is whether the
    prompt may change without a cut. The text encoder is counted unless the embeddings of all ``prompts`` are known
    (None: any prompt may come). Layers can be ``sharing`` buffers of what a block attends to. CUDA
    graphs have memory of their own for a pass. ``card`` are the bytes of a GPU that is planned for though it is not
    here.
    """
    family = family_of(config)
    sizes = family.transformer_sizes(config, folder, dtype, shape=shape)
    decoder, decoding = family.decoder_bytes(config, folder, dtype, shape=shape)
    frames = config.latent_frames(seconds) + references
    encoder = family.files(config, folder).get("memory.encoder")
    common = [_activations(config, sizes, frames=_at_once(config, frames, switches=switches), batch=batch)]
    if cuda_graphs:
        recorded = _activations(config, sizes, frames=config.backbone.frames_per_block, batch=batch)
        common.append(dataclasses.replace(recorded, name="CUDA graphs"))
    if not loaded:
        common += _weights(sizes, offload=offload)
        common += [Part("VAE", decoder, "device"), Part("retrieval encoder", _encoder_bytes(config, encoder), "device")]
    if not loaded and (size := family.text_bytes(config, folder, prompts)):
        here = device.type == "cuda" and card is None
        at: Location = "device" if here and (free_memory(device) or 0) > 1.1 * size else "host"
        common.append(Part("text encoder", size, at, phase="text"))
    text = 2 * family.text_length * sizes.dim * sizes.layers * sizes.item
    common += [
        Part("keys and values of the prompt", text * batch, "device"),
        _history(config, encoder, sizes, frames=frames, batch=batch),
        Part("decoding", decoding, "device", PICTURE),
    ]
    if device.type == "cuda":
        common.append(Part("CUDA workspaces (estimate)", WORKSPACES, "device"))
    on_host = device.type == "cpu"  # then device and host are the same memory
    free: dict[Location, int | None] = {
        "device": free_memory(device) if card is None else card - CONTEXT,
        "host": None if on_host else free_memory(None),
        "disk": free_disk(scratch or Path(tempfile.gettempdir())),
    }

    def with_tier(tier: Tier) -> Budget:
        chosen = config
        if isinstance(config.memory, RetrievalMemory):
            chosen = config.model_copy(update={"memory": config.memory.model_copy(update={"archive": tier})})
        parts = [*common, *_caches(chosen, tier, sizes, dtype, frames=frames, batch=batch, sharing=sharing)]
        parts.append(Part("pinned references", pinned * _page(config, sizes) * batch, "device", PICTURE))
        if on_host:
            parts = [
                dataclasses.replace(part, location="device") if part.location == "host" else part for part in parts
            ]
        return Budget(chosen, tuple(part for part in parts if part.bytes), device, free, limit)

    if not isinstance(config.memory, RetrievalMemory) or not config.memory.retrieves:
        return with_tier("device")
    if config.memory.archive != "auto":
        return with_tier(config.memory.archive)
    tried = (*EXACT, *(tier for tier in TIERS if tier not in EXACT and limit is not None))
    budgets = [with_tier(tier) for tier in tried]
    return next((budget for budget in budgets if budget.comfortable), budgets[-1])


def _tokens(config: RunConfig, sizes: TransformerSizes) -> int:
    return config.backbone.height * config.backbone.width // sizes.patch


def _page(config: RunConfig, sizes: TransformerSizes) -> int:
    """Bytes of the keys and values of a frame of one video, in all layers."""
    return 2 * _tokens(config, sizes) * sizes.dim * sizes.layers * sizes.item


def _at_once(config: RunConfig, frames: int, *, switches: bool) -> int:
    """The most frames that a pass computes: a block, or the whole window, computed again for another prompt."""
    memory, block = config.memory, config.backbone.frames_per_block
    if not switches or memory.recache == "none" or memory.commit == "self":
        return block
    return max(block, frames if memory.window is None else min(frames, memory.window))


def _activations(config: RunConfig, sizes: TransformerSizes, *, frames: int, batch: int) -> Part:
    """What a pass over some frames holds at most: in the feed-forward part, or where a layer attends."""
    tokens = frames * _tokens(config, sizes)
    each = max(2 * sizes.ffn + 4 * sizes.dim, 14 * sizes.dim)
    return Part("activations", tokens * each * sizes.item * batch, "device", PICTURE)


def _weights(sizes: TransformerSizes, *, offload: bool) -> list[Part]:
    if not offload:
        return [Part("weights", sizes.weights, "device")]
    share = 2 * sizes.weights // max(1, sizes.layers)
    return [Part("weights in use", share, "device"), Part("weights", sizes.weights, "host")]


def _encoder_bytes(config: RunConfig, file: Path | None) -> int:
    """Bytes of the retrieval encoder, which is in float32."""
    memory = config.memory
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves or memory.keys != "encoder":
        return 0
    if file is not None and file.exists():
        return file.stat().st_size
    with torch.device("meta"):
        return sum(4 * parameter.numel() for parameter in LatentAutoencoder(EncoderConfig()).parameters())


def _caches(
    config: RunConfig,
    tier: Tier,
    sizes: TransformerSizes,
    dtype: torch.dtype,
    *,
    frames: int,
    batch: int,
    sharing: Sharing,
) -> list[Part]:
    memory, block = config.memory, config.backbone.frames_per_block
    tokens, frame = _tokens(config, sizes), _page(config, sizes)
    attended = frames if memory.window is None else min(frames, memory.window)
    window = PICTURE | LENGTH if memory.window is None else PICTURE
    by_layer, unread, without = frame // sizes.layers, 0, attended
    if isinstance(memory, RetrievalMemory):
        unread = memory.unread_layers(sizes.layers)
        without = max(attended - memory.retrieved, min(attended, memory.commit_reach(block) or 0))
    shared, own = max(attended, without), (sizes.layers - unread) * attended + unread * without
    context = {"none": 2 * own, "values": own + shared, "all": 2 * shared}[sharing]  # of keys, and of values
    parts = [Part("K/V that a block attends to", context * by_layer // 2 * batch, "device", window)]
    if memory.sink_decay is not None and sizes.item < 4:  # the mean of the sink, in float32
        parts.append(Part("running mean of the sink", memory.sink * frame * 4 // sizes.item * batch, "device", PICTURE))
    table = 4 * tokens * sizes.dim // sizes.heads  # cosines and sines of a frame, float32
    parts.append(Part("rotary tables", TABLES * attended * table, "device", window))
    kept = frames if memory.recent_frames is None else min(frames, memory.sink + memory.recent_frames)
    if memory.retrieves and tier == "device":
        parts.append(Part("K/V window", kept * unread * by_layer * batch, "device", window))
        archived = (sizes.layers - unread) * by_layer
        return [*parts, Part("archive of K/V", frames * archived * batch, "device", PICTURE | LENGTH)]
    parts.append(Part("K/V window", kept * frame * batch, "device", window))
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        return parts
    head = sizes.dim // sizes.heads
    layout = Layout.of((tokens, sizes.heads, head), dtype, eight_bit=tier == "host-int8")
    page = (sizes.layers - unread) * layout.bytes * batch
    parts.append(Part("retrieved K/V", slots_of(tier, memory.retrieved) * page, "device", PICTURE))
    if tier == "recompute":
        alone = (memory.sink + block) * by_layer + block * frame  # one buffer, and what its passes leave
        parts.append(Part("recomputing", alone, "device", PICTURE))
        latent = sizes.channels * config.backbone.height * config.backbone.width * sizes.item
        return [*parts, Part("archive of latents", frames * latent * batch, "disk", PICTURE | LENGTH)]
    location: Location = "disk" if tier == "disk" else "host"
    return [*parts, Part("archive of K/V", frames * page, location, PICTURE | LENGTH)]


def _history(config: RunConfig, encoder: Path | None, sizes: TransformerSizes, *, frames: int, batch: int) -> Part:
    size = sizes.channels
    if isinstance(config.memory, RetrievalMemory) and config.memory.attention_layer(sizes.layers) is not None:
        size = sizes.dim
    elif isinstance(config.memory, RetrievalMemory) and config.memory.keys == "encoder":
        size = EncoderConfig().latent_dim if encoder is None or not encoder.exists() else embedding_size(encoder)
    return Part("keys of the history", 4 * size * frames * batch, "device", LENGTH)
