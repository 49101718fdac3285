"""What a run is made of: frozen, strict, each field with its bounds and its meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from pydantic import Field, PositiveInt, SerializeAsAny, field_validator, model_validator

from llrag_cli.errors import UsageError
from llrag_cli.files.settings import Config
from llrag_cli.memory import own as _own  # noqa: F401 - enters its strategy into the registry
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory, SlidingWindow, parse_memory

Location = Literal["device", "host", "disk"]
LOCATIONS: tuple[Location, ...] = get_args(Location)
EightBit = Literal["int8", "fp8"]


@dataclass(frozen=True)
class LatentSpace:
    """How the latent frames of a family of models relate to its video."""

    channels: int  # of the released models
    spatial_ratio: int  # pixels along a side of a latent pixel
    temporal_ratio: int  # video frames of each latent frame but the first, which holds one
    patch_size: int = 2  # latent pixels along a side of a token

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that the first latent frames of a video decode to."""
        return self.temporal_ratio * (latent_frames - 1) + 1

    def latent_frames(self, video_frames: int) -> int:
        """The fewest latent frames that hold so many video frames."""
        return 1 + math.ceil(max(0, video_frames - 1) / self.temporal_ratio)


LATENT_SPACES: Mapping[str, LatentSpace] = {  # by family; all else that a family is, is in models/
    "tiny": LatentSpace(channels=8, spatial_ratio=16, temporal_ratio=4),
    "wan": LatentSpace(channels=16, spatial_ratio=8, temporal_ratio=4),
}


class SamplerConfig(Config):
    """Few-step flow matching: predict the clean latents, noise them again less, repeat."""

    steps: tuple[int, ...] = Field(default=(1000, 750, 500, 250), description="denoising steps, falling, in 1..1000")
    first_steps: tuple[int, ...] | None = Field(
        default=None, description="denoising steps of the first generated block, if other than `steps`"
    )
    shift: float = Field(default=5.0, gt=0, description="shift of the sigma table; above 1 lingers at high noise")
    warp: bool = Field(default=True, description="read `steps` through the shifted table")
    context_timestep: float = Field(default=0.0, ge=0, le=1000, description="timestep of the clean pass")

    @field_validator("steps", "first_steps")
    @classmethod
    def _falling(cls, steps: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if steps is None:
            return None
        if not steps or any(not 1 <= step <= 1000 for step in steps):
            raise ValueError("steps are integers in 1..1000, at least one")
        if any(after >= before for before, after in pairwise(steps)):
            raise ValueError("steps must fall from noise to clean")
        return steps


class BackboneConfig(Config):
    """The model that writes the video, and the latents it writes."""

    family: str = Field(description="`tiny`, the embedded model, or `wan`, a Wan2.1 checkpoint")
    weights: str | None = Field(default=None, description="transformer checkpoint, in the weights folder")
    ema: bool = Field(default=False, description="read the EMA weights of the checkpoint")
    lora: str | None = Field(default=None, description="LoRA checkpoint to merge, in the weights folder")
    lora_alpha: float = Field(default=256.0, gt=0, description="scale of the LoRA, divided by its rank")
    quantize: EightBit | None = Field(default=None, description="attention and feed-forward layers in eight bits")
    base: str | None = Field(default=None, description="folder of VAE and text encoder in Diffusers format")
    frames_per_block: PositiveInt = Field(default=3, le=1024, description="latent frames denoised together")
    height: int = Field(default=60, gt=0, le=4096, description="of a latent frame, in latent pixels")
    width: int = Field(default=104, gt=0, le=4096, description="of a latent frame, in latent pixels")
    fps: int = Field(default=16, gt=0, le=1000, description="video frames a second")

    @field_validator("family")
    @classmethod
    def _known(cls, family: str) -> str:
        if family not in LATENT_SPACES:
            raise ValueError(f"unknown family; known are {', '.join(f'`{name}`' for name in LATENT_SPACES)}")
        return family

    @property
    def latent_space(self) -> LatentSpace:
        """The ratios of the family's latents."""
        return LATENT_SPACES[self.family]


class VideoConfig(Config):
    """How the video file is written."""

    upscale: int = Field(default=1, ge=1, le=16, description="enlarge each frame by a whole factor when writing")
    crf: int = Field(default=18, ge=0, le=51, description="x264 quality: 0 lossless, 51 worst")
    decoder: Literal["full", "tiny"] = Field(
        default="full", description="`full`: the VAE's; `tiny`: a small one for previews, of Wan backbones"
    )


class RunConfig(Config):
    """One configuration: a backbone with a sampler and a memory."""

    name: str = Field(description="preset it came from")
    about: str = Field(default="", description="one line for lists")
    checked: str = Field(default="", description="how the preset has been checked, for lists")
    backbone: BackboneConfig
    sampler: SamplerConfig = SamplerConfig()
    memory: SerializeAsAny[MemoryConfig] = Field(default=SlidingWindow(), description="one of the memory strategies")
    video: VideoConfig = VideoConfig()

    @field_validator("memory", mode="before")
    @classmethod
    def _of_a_strategy(cls, content: Any) -> MemoryConfig:
        return parse_memory(content)

    @property
    def label(self) -> str:
        """Preset and memory strategy, for titles."""
        return f"{self.name} {self.memory.title}"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        memory, block = self.memory, self.backbone.frames_per_block
        if memory.window is not None:
            retrieved = memory.retrieved if isinstance(memory, RetrievalMemory) else 0
            local = memory.window - memory.sink - retrieved
            if local < block:
                raise ValueError(
                    f"a window of {memory.window} less sink {memory.sink} and retrieved {retrieved} leaves "
                    f"{local} local frames, fewer than the {block} of a block"
                )
        if memory.commit_frames is not None and memory.commit_frames < block:
            raise ValueError(f"commit_frames {memory.commit_frames} is less than the {block} frames of a block")
        if isinstance(memory, RetrievalMemory) and memory.read_steps is not None:
            fewest = min(len(steps) for steps in (self.sampler.steps, self.sampler.first_steps) if steps is not None)
            if memory.read_steps > fewest:
                raise ValueError(f"read_steps {memory.read_steps} is more than the number of denoising steps, {fewest}")
        if memory.relative_times and memory.sink > block:
            which = "retrieval" if isinstance(memory, RetrievalMemory) else f"`{memory.strategy}`"
            raise ValueError(f"a sink of {memory.sink} is longer than a block of {block}: not defined with {which}")
        return self

    def latent_frames(self, seconds: float) -> int:
        """Whole blocks of latent frames that last at least ``seconds``."""
        video_frames = math.ceil(round(seconds * self.backbone.fps, 6))
        block = self.backbone.frames_per_block
        return block * math.ceil(self.backbone.latent_space.latent_frames(video_frames) / block)

    @property
    def latent_space(self) -> LatentSpace:
        """How latent frames relate to video."""
        return self.backbone.latent_space

    def video_frames(self, latent_frames: int) -> int:
        """Video frames that latent frames decode to."""
        return self.latent_space.video_frames(latent_frames)

    def second_of(self, latent_frame: int) -> float:
        """Time in seconds at which the last video frame of a latent frame is shown, or a difference of such times."""
        return self.latent_space.temporal_ratio * latent_frame / self.backbone.fps

    def require_framewise(self) -> None:
        """Raise ``UsageError`` unless videos can start from a picture, which is one latent frame."""
        block = self.backbone.frames_per_block
        if block != 1:
            raise UsageError(
                f"`{self.name}` generates blocks of {block} latent frames, so it cannot start from one picture",
                hint="use a frame-wise backbone, for example `causal-forcing-framewise`",
            )

    @property
    def width(self) -> int:
        """Width of the video in pixels, before it is enlarged."""
        return self.backbone.latent_space.spatial_ratio * self.backbone.width

    @property
    def height(self) -> int:
        """Height of the video in pixels, before it is enlarged."""
        return self.backbone.latent_space.spatial_ratio * self.backbone.height


class ModelShape(Config):
    """Sizes of a Wan model, named as diffusers names them; by default those of Wan2.1-T2V-1.3B."""

    num_layers: int = Field(default=30, gt=0, le=1024, description="transformer layers")
    num_attention_heads: int = Field(default=12, gt=0, le=1024, description="attention heads of a layer")
    attention_head_dim: int = Field(default=128, ge=8, le=4096, multiple_of=2, description="channels of a head")
    ffn_dim: int = Field(default=8960, gt=0, le=2**20, description="channels inside the feed-forward part")
    in_channels: int = Field(default=16, gt=0, le=4096, description="channels of a latent frame")
    patch_size: tuple[Literal[1], PositiveInt, PositiveInt] = Field(
        default=(1, 2, 2), description="latent frames, rows and columns that make a token"
    )
    text_dim: int = Field(default=4096, gt=0, le=2**20, description="channels of the text encoder")
    freq_dim: int = Field(
        default=256, gt=0, le=2**16, multiple_of=2, description="channels of the timestep's sinusoids"
    )
    vae_base_dim: int = Field(default=96, gt=0, le=4096, description="channels of the VAE at full resolution")

    @model_validator(mode="before")
    @classmethod
    def _sizes_alone(cls, content: Any) -> Any:
        """A model's own ``transformer/config.json`` holds more than sizes; the rest is ignored."""
        if not isinstance(content, dict) or "_class_name" not in content:
            return content
        if content["_class_name"] != "WanTransformer3DModel":
            raise ValueError(f"a `{content['_class_name']}` is not supported; expected a WanTransformer3DModel")
        enters, leaves = content.get("in_channels"), content.get("out_channels")
        if leaves is not None and enters != leaves:
            raise ValueError(f"{enters} channels go in and {leaves} come out, but it must write what it reads")
        return {name: value for name, value in content.items() if name in cls.model_fields}


EMBEDDED_SHAPE = ModelShape(  # of the embedded model
    num_layers=8,
    num_attention_heads=4,
    attention_head_dim=32,
    ffn_dim=512,
    in_channels=8,
    text_dim=96,
    freq_dim=64,
)
