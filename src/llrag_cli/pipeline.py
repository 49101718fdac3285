"""Everything one configuration needs, loaded: text encoder, backbone, decoder and what frames are compared by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llrag_cli.backbones.checkpoints import cast, generator_state, load_transformer, lora_state, merge_lora, read_file
from llrag_cli.backbones.wan import WanBackbone
from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError, UsageError, closest
from llrag_cli.memory.encoder import load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.presets import load_config
from llrag_cli.rollout import Block, rollout
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.text import TextEncoder, TinyTextEncoder, Umt5TextEncoder
from llrag_cli.vae import StreamingDecoder, TinyDecoder, WanDecoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Pipeline:
    """A configuration ready to run; ``blocks`` writes videos, ``decoder`` turns their latents into frames."""

    config: RunConfig
    backbone: WanBackbone
    text: TextEncoder
    decoder: StreamingDecoder
    encode_key: KeyEncoder

    @classmethod
    def load(
        cls, config: RunConfig, *, device: str = "auto", dtype: str = "auto", weights: Path | None = None
    ) -> Pipeline:
        """Load a configuration's weights; raises ``LlragError`` before any work if something is not there."""
        place = find_device(device)
        kind = find_dtype(dtype, place, family=config.backbone.family)
        folder = weights or weights_folder()
        require_files(config, folder)
        if config.memory.policy == "retrieval" and config.memory.keys == "encoder":
            file = _encoder_file(config, folder)
            encoder = load_encoder(file, device=place)
            sizes = encoder.config
            if (sizes.spatial_h, sizes.spatial_w) != (config.backbone.height, config.backbone.width):
                raise LlragError(
                    f"`{file}` was made for latents of {sizes.spatial_h}x{sizes.spatial_w}, "
                    f"not {config.backbone.height}x{config.backbone.width}",
                    hint="use the encoder trained for this backbone, or `--set memory.keys=average`",
                )
            encode_key: KeyEncoder = encoder
        else:
            encode_key = average_pool
        if config.backbone.family == "tiny":
            return cls(config, *_load_tiny(place, kind), encode_key)
        return cls(config, *_load_wan(config, folder, place, kind), encode_key)

    def blocks(
        self, prompts: Sequence[str], *, seconds: float, seed: int = 0, samples: Sequence[int] | None = None
    ) -> Iterator[Block]:
        """Write one video a prompt, all in one batch, block by block.

        A video depends on its prompt, the seed and its sample number (0, 1, ... unless given), not on the batch.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise UsageError("a prompt is empty", hint="say in a sentence what the video shows")
        yield from self.blocks_of(self.text.encode(prompts), seconds=seconds, seed=seed, samples=samples)

    def blocks_of(
        self, embeddings: Tensor, *, seconds: float, seed: int = 0, samples: Sequence[int] | None = None
    ) -> Iterator[Block]:
        """As ``blocks``, for prompt embeddings [B, text, D]."""
        config = self.config
        numbers = range(len(embeddings)) if samples is None else samples
        yield from rollout(
            self.backbone,
            embeddings,
            frames=config.latent_frames(seconds),
            shape=(self.backbone.channels, config.backbone.height, config.backbone.width),
            block=config.backbone.frames_per_block,
            schedule=schedule_of(config),
            memory=config.memory,
            history=History(self.encode_key),
            noise=AddressedNoise(seed, numbers),
            context_timestep=config.sampler.context_timestep,
        )


def schedule_of(config: RunConfig) -> FlowMatchSchedule:
    """The sampler's timesteps and sigmas."""
    return FlowMatchSchedule(steps=config.sampler.steps, shift=config.sampler.shift, warp=config.sampler.warp)


def weights_folder() -> Path:
    """Where downloaded weights lie: LLRAG_WEIGHTS, or ``llrag/weights`` in the user's cache."""
    if "LLRAG_WEIGHTS" in os.environ:
        return Path(os.environ["LLRAG_WEIGHTS"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llrag" / "weights"


def needed_files(config: RunConfig, folder: Path) -> dict[str, Path]:
    """What a configuration reads from the weights folder: file or folder by the setting that names it."""
    backbone, memory = config.backbone, config.memory
    named = {"backbone.weights": backbone.weights, "backbone.lora": backbone.lora, "backbone.base": backbone.base}
    if memory.policy == "retrieval" and memory.keys == "encoder":
        named["memory.encoder"] = memory.encoder
    return {setting: folder / name for setting, name in named.items() if name is not None}


def default_backbone() -> str:
    """What runs when no backbone is named: a real one if its weights and a GPU are here, else the embedded one."""
    if torch.cuda.is_available():
        for name in ("self-forcing", "longlive", "causal-forcing"):
            needed = needed_files(load_config(name, method="retrieval"), weights_folder())
            if all(path.exists() for path in needed.values()):
                return name
    return "tiny"


def require_files(config: RunConfig, folder: Path) -> None:
    """Raise an error that names the first file that is not there."""
    if config.backbone.family == "wan":
        for setting in ("weights", "base"):
            if getattr(config.backbone, setting) is None:
                raise UsageError(f"`backbone.{setting}` is not set", hint="a Wan backbone needs its files named")
    for setting, path in needed_files(config, folder).items():
        if not path.exists():
            raise LlragError(
                f"the weights of `{config.name}` are not all there: no `{path}` (setting `{setting}`)",
                hint="put the released file there, point LLRAG_WEIGHTS to the folder that holds it, "
                "or use `--backbone tiny`",
            )


def _encoder_file(config: RunConfig, folder: Path) -> Path:
    if config.memory.encoder is None:
        raise UsageError(
            "`memory.keys` is `encoder` but `memory.encoder` names no file",
            hint="add `--set memory.encoder=FILE`, or use `--set memory.keys=average`",
        )
    return folder / config.memory.encoder


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


def _load_tiny(device: torch.device, dtype: torch.dtype) -> tuple[WanBackbone, TextEncoder, StreamingDecoder]:
    from llrag_cli.tiny.model import load_embedded

    transformer, text, vae = load_embedded()
    cast(transformer, dtype)
    backbone = WanBackbone(transformer.to(device))
    return backbone, TinyTextEncoder(text.to(device)), TinyDecoder(vae.to(device))


def _load_wan(
    config: RunConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[WanBackbone, TextEncoder, StreamingDecoder]:
    from diffusers import AutoencoderKLWan

    files = needed_files(config, folder)
    file = files["backbone.weights"]
    state = generator_state(read_file(file), ema=config.backbone.ema, source=str(file))
    if "backbone.lora" in files:
        lora = lora_state(read_file(files["backbone.lora"]), source=str(files["backbone.lora"]))
        state = merge_lora(state, lora, alpha=config.backbone.lora_alpha, source=str(files["backbone.lora"]))
    transformer: Any = load_transformer(state, source=str(file), dtype=dtype)
    base = files["backbone.base"]
    vae: Any = AutoencoderKLWan.from_pretrained(base / "vae", torch_dtype=dtype, local_files_only=True)
    return WanBackbone(transformer.to(device)), WanText(base), WanDecoder(vae.to(device))


class WanText:
    """Wan's text encoder, in memory only while it encodes: it is four times the size of the backbone."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        return Umt5TextEncoder(self.base).encode(prompts)

    def unknown_words(self, prompt: str) -> list[str]:
        """As ``TextEncoder.unknown_words``."""
        return []
