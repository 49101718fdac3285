"""Everything one configuration needs, loaded: text encoder, backbone, decoder and what frames are compared by."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.download.convert import stored_dtype
from llrag_cli.engine.rollout import rollout
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, UsageError, closest
from llrag_cli.files.image import read_image
from llrag_cli.files.paths import cache_folder, weights_folder
from llrag_cli.memory.encoder import EncoderConfig, load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.text import TextEncoder, TinyTextEncoder, WanText
from llrag_cli.models.vae import Decoder, StreamingDecoder, TinyDecoder, WanDecoder
from llrag_cli.models.wan.checkpoints import cast, generator_state, load_transformer, lora_state, merge_lora, read_file
from llrag_cli.models.wan.parts import WanBase
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.models.weights import missing_files, needed_files, require_files
from llrag_cli.planning import Budget, free_memory, plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a backbone is run, which does not change what it computes but for rounding."""

    offload: bool = False  # weights stay on the host and come to the device layer by layer
    attention: str | None = None  # one of diffusers' attention back ends
    compile: bool = False  # torch.compile over the repeated blocks


@dataclass(frozen=True)
class Pipeline:
    """The loaded weights of one configuration; ``start`` begins a video. Nothing of a video is kept here."""

    config: RunConfig
    backbone: WanBackbone
    text: TextEncoder
    decoder: Decoder
    encode_key: KeyEncoder
    folder: Path  # of weights

    @classmethod
    def load(
        cls,
        config: RunConfig | str | Path = "tiny",
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: Path | None = None,
        how: Execution | None = None,
        prompts: Sequence[str] = (),
    ) -> Pipeline:
        """Load the weights of a configuration: a ``RunConfig``, the name of a bundled preset, or a YAML file.

        Raises ``LlragError`` before any work if a file is missing. Prompts that are known already are encoded before
        the backbone is read, so that a large text encoder and the backbone are never in memory together.
        """
        if not isinstance(config, RunConfig):
            config = load_config(config)
        target = find_device(device)
        kind = find_dtype(dtype, target, family=config.backbone.family)
        folder = weights or weights_folder()
        how = how or Execution()
        if how.attention is not None:
            require_attention(how.attention)
        require_files(config, folder)
        encoder = None
        if isinstance(config.memory, RetrievalMemory) and config.memory.keys == "encoder":
            encoder = load_encoder(needed_files(config, folder)["memory.encoder"], device=target)
            require_fit(encoder.config, config, channels=encoder.config.in_channels)  # before much is read
        if config.backbone.family == "tiny":
            parts = _load_tiny(target, kind, how)
        else:
            parts = _load_wan(config, folder, target, kind, how, prompts)
        pipeline = cls(config, *parts, encoder or average_pool, folder)
        if encoder is not None:
            require_fit(encoder.config, config, channels=pipeline.backbone.channels)
        return pipeline

    def start(
        self,
        prompt: str | Sequence[str],
        *,
        seconds: float,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        image: Path | None = None,
        initial_latents: Tensor | None = None,
        prompt_schedule: Mapping[int, str] | None = None,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Session:
        """Begin a video of at least ``seconds``, or with several prompts a batch of videos, one for each.

        A video depends on its prompt, the seed and its sample number (0, 1, ... unless ``samples`` says otherwise), not
        on the batch. It may open with an ``image`` (any size, cropped to the video's shape; only frame-wise backbones)
        or with ``initial_latents`` [B, whole blocks of frames, C, h, w]. Prompts of ``prompt_schedule`` take over, for
        the whole batch, at the block of their number. Files of the archive are in the folder ``scratch``, or in that
        for temporary files. Parts of a block are timed by ``clock``, in seconds.

        Raises ``UsageError`` for an empty prompt or an invalid length.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        schedule = dict(prompt_schedule or {})
        if not prompts or not all(text.strip() for text in (*prompts, *schedule.values())):
            raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows")
        if not 0 < seconds < float("inf"):
            raise UsageError(f"a video cannot be {seconds:g} seconds long", hint="the length must be more than 0")
        if image is not None and initial_latents is None:
            initial_latents = self.image_latent(image).expand(len(prompts), -1, -1, -1, -1)
        config = self.with_archive(seconds, batch=len(prompts), scratch=scratch).config
        frames, block = config.latent_frames(seconds), config.backbone.frames_per_block
        embeddings = {index: self.text.encode([text]).expand(len(prompts), -1, -1) for index, text in schedule.items()}
        blocks = rollout(
            self.backbone,
            self.text.encode(prompts),
            frames=frames,
            shape=(self.backbone.channels, config.backbone.height, config.backbone.width),
            block=block,
            schedule=schedule_of(config),
            memory=config.memory,
            history=History(self.encode_key, frames=frames),
            noise=AddressedNoise(seed, range(len(prompts)) if samples is None else samples),
            context_timestep=config.sampler.context_timestep,
            initial_latents=initial_latents,
            prompt_schedule=embeddings,
            scratch=scratch,
            clock=clock,
        )
        return Session(blocks, self.decoder, block_count=frames // block)

    def image_latent(self, image: Path) -> Tensor:
        """The latent frame [1, 1, C, h, w] of a picture."""
        require_framewise(self.config)
        ratio = self.decoder.spatial_ratio
        size = (ratio * self.config.backbone.height, ratio * self.config.backbone.width)
        return self.decoder.encode(read_image(image, size=size)[None])

    def with_archive(self, seconds: float, *, batch: int = 1, scratch: Path | None = None) -> Pipeline:
        """The same weights with the tier of the archive chosen, if it is `auto`, by the memory that is free now."""
        memory = self.config.memory
        if not isinstance(memory, RetrievalMemory) or memory.archive != "auto":
            return self
        budget = plan(
            self.config,
            self.folder,
            device=self.backbone.device,
            dtype=self.backbone.dtype,
            seconds=seconds,
            batch=batch,
            scratch=scratch,
            loaded=True,
        )
        budget.require()
        return replace(self, config=budget.config)

    def with_memory(self, config: RunConfig) -> Pipeline:
        """The same weights under the memory of another configuration, which differs in its memory alone."""
        memory = config.memory
        encodes = isinstance(memory, RetrievalMemory) and memory.keys == "encoder"
        if encodes and self.encode_key is average_pool:
            encoder = load_encoder(needed_files(config, self.folder)["memory.encoder"], device=self.backbone.device)
            require_fit(encoder.config, config, channels=self.backbone.channels)
            return replace(self, config=config, encode_key=encoder)
        return replace(self, config=config, encode_key=self.encode_key if encodes else average_pool)


def require_fit(sizes: EncoderConfig, config: RunConfig, *, channels: int) -> None:
    """Raise an error unless an encoder takes the latents that a configuration writes."""
    takes = (sizes.in_channels, sizes.spatial_h, sizes.spatial_w)
    writes = (channels, config.backbone.height, config.backbone.width)
    if takes != writes:
        raise LlragError(
            f"the retrieval encoder was made for latents of {'x'.join(map(str, takes))}, "
            f"`{config.name}` writes {'x'.join(map(str, writes))}",
            hint="use an encoder trained for this backbone, or `--set memory.keys=average`",
        )


def require_framewise(config: RunConfig) -> None:
    """Raise an error unless a configuration can start from a picture."""
    block = config.backbone.frames_per_block
    if block != 1:
        raise UsageError(
            f"`{config.name}` writes blocks of {block} latent frames, so it cannot open with one picture",
            hint="use a frame-wise backbone, for example `--backbone causal-forcing-framewise`",
        )


def memory_plan(
    config: RunConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    seconds: float,
    offload: bool = False,
    batch: int = 1,
    weights: Path | None = None,
    limit: int | None = None,
    scratch: Path | None = None,
) -> Budget:
    """What a run will hold in memory and what there is; reads headers only, raises if a file is not there.

    Its ``config`` is the one to run: with the tier of the archive chosen as ``budget.plan`` says.
    """
    target = find_device(device)
    folder = weights or weights_folder()
    require_files(config, folder)
    kind = find_dtype(dtype, target, family=config.backbone.family)
    return plan(
        config,
        folder,
        device=target,
        dtype=kind,
        seconds=seconds,
        offload=offload,
        batch=batch,
        limit=limit,
        scratch=scratch,
    )


def schedule_of(config: RunConfig) -> FlowMatchSchedule:
    """The sampler's timesteps and sigmas."""
    sampler = config.sampler
    return FlowMatchSchedule(
        steps=sampler.steps, shift=sampler.shift, warp=sampler.warp, first_steps=sampler.first_steps
    )


def default_backbone() -> str:
    """What runs when no backbone is named: a real one if its weights and a GPU are here, else the embedded one."""
    if torch.cuda.is_available():
        for name in ("self-forcing", "longlive", "causal-forcing"):
            if not missing_files(load_config(name), weights_folder()):
                return name
    return "tiny"


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UsageError(
            f"there is no device `{name}` here", hint=f"this machine has {', '.join(f'`{each}`' for each in there)}"
        ) from None
    if device.type in ("meta", "mps"):
        lacks = "computes nothing" if device.type == "meta" else "has no float64, which the sampler needs"
        raise UsageError(f"the device `{name}` {lacks}", hint="use `cpu`, or a CUDA GPU")
    return device


def find_dtype(name: str, device: torch.device, *, family: str) -> torch.dtype:
    """The type of a name; ``auto`` is bfloat16 for Wan on a GPU, else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and family == "wan" else torch.float32
    if name not in DTYPES:
        raise UsageError(f"there is no dtype `{name}`", hint=closest(name, DTYPES))
    return DTYPES[name]


def _load_tiny(
    device: torch.device, dtype: torch.dtype, how: Execution
) -> tuple[WanBackbone, TextEncoder, StreamingDecoder]:
    from llrag_cli.models.embedded.model import load_embedded

    transformer, text, vae = load_embedded()
    cast(transformer, dtype)
    return place(transformer, device, how), TinyTextEncoder(text.to(device)), TinyDecoder(vae.to(device))


def _load_wan(
    config: RunConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    how: Execution,
    prompts: Sequence[str],
) -> tuple[WanBackbone, TextEncoder, StreamingDecoder]:
    files = needed_files(config, folder)
    base = WanBase(files["backbone.base"])
    text = WanText(base, cache=cache_folder() / "prompts", device=_text_device(base, device))
    if prompts:
        text.encode(prompts)  # now, while the encoder has the memory to itself
    file = files["backbone.weights"]
    if (stored := stored_dtype(file)) is not None and DTYPES[stored].itemsize < dtype.itemsize:
        item = file.stem.replace("_", "-")
        warnings.warn(
            f"`{file}` was rounded to {stored} when it was downloaded; for more precision, "
            f"`llrag download weights {item} --dtype {str(dtype).removeprefix('torch.')}`"
        )
    state = generator_state(read_file(file), ema=config.backbone.ema, source=str(file))
    if "backbone.lora" in files:
        lora = lora_state(read_file(files["backbone.lora"]), source=str(files["backbone.lora"]))
        state = merge_lora(state, lora, alpha=config.backbone.lora_alpha, source=str(files["backbone.lora"]))
    transformer: Any = load_transformer(state, source=str(file), heads=base.heads(), dtype=dtype)
    del state
    backbone = place(transformer, device, how)
    return backbone, text, WanDecoder(base.vae(dtype).to(device))


def _text_device(base: WanBase, device: torch.device) -> torch.device | None:
    """Where the text encoder computes: with the backbone if it has the room to itself there, else on the CPU."""
    if device.type != "cuda":
        return None
    size = sum(file.stat().st_size for file in base.text_files())
    room = free_memory(device)
    return device if room is not None and room > 1.1 * size else None


def place(transformer: Any, device: torch.device, how: Execution) -> WanBackbone:
    """Bring a transformer to its device, as asked for, and make it a backbone."""
    backbone = WanBackbone(transformer)
    if how.offload:
        transformer.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",  # prompt and context are read outside of a block's forward
            use_stream=device.type == "cuda",
        )
        backbone.set_offloaded(device)
    else:
        transformer.to(device)
    if how.attention is not None:
        set_attention(backbone, how.attention)
    if how.compile:
        backbone.compile()
    return backbone


def require_attention(name: str) -> None:
    """Raise an error unless diffusers knows an attention back end."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise UsageError(f"there is no attention back end `{name}`", hint=closest(name, known))


def set_attention(backbone: WanBackbone, name: str) -> None:
    """Have diffusers compute a backbone's attention with a back end of its list; one that fails here is an error.

    It is tried once. diffusers' own setter would change the back end of every model in the process.
    """
    require_attention(name)
    try:
        backbone.set_attention(name)
    except Exception as error:  # every back end fails in its own way
        raise LlragError(
            f"the attention back end `{name}` does not work here: {str(error).splitlines()[0]}",
            hint="install what it needs, or use `--attention native`",
        ) from error
