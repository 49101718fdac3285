"""What a run is made of: frozen, strict, each field with its bounds and its meaning."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from typing_extensions import Self

TEMPORAL_RATIO = 4  # video frames in each latent frame but the first
Recall = Literal["nearest", "successor", "prompt", "diverse", "gate", "uniform", "random", "deep-sink"]
RECALLS: tuple[Recall, ...] = get_args(Recall)
Tier = Literal["device", "host", "host-int8", "disk", "recompute"]
TIERS: tuple[Tier, ...] = get_args(Tier)
Place = Literal["device", "host", "disk"]
PLACES: tuple[Place, ...] = get_args(Place)
EXACT: tuple[Tier, ...] = ("device", "host", "disk")  # those that all write the same video


class Config(BaseModel):
    """Base of all configuration: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplerConfig(Config):
    """Few-step flow matching: predict the clean latents, noise them again less, repeat."""

    steps: tuple[int, ...] = Field(default=(1000, 750, 500, 250), description="denoising steps, falling, in 1..1000")
    shift: float = Field(default=5.0, gt=0, description="shift of the sigma table; above 1 lingers at high noise")
    warp: bool = Field(default=True, description="read `steps` through the shifted table")
    context_timestep: float = Field(default=0.0, ge=0, le=1000, description="timestep of the clean pass")

    @field_validator("steps")
    @classmethod
    def _falling(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or any(not 1 <= step <= 1000 for step in steps):
            raise ValueError("steps are whole numbers in 1..1000, at least one")
        if any(after >= before for before, after in pairwise(steps)):
            raise ValueError("steps must fall from noise to clean")
        return steps


class MemoryConfig(Config):
    """Which past latent frames one block attends to; every count is in latent frames."""

    policy: Literal["native", "retrieval"] = Field(default="native", description="plain sliding window, or with recall")
    window: int | None = Field(default=12, gt=0, description="frames attended, own block included; null: no end")
    sink: int = Field(default=1, ge=0, description="first frames of the video, always attended")
    retrieved: int = Field(default=0, ge=0, description="K: frames recalled from history for each block")
    guard: int = Field(default=0, ge=0, description="R: newest evicted frames that cannot be recalled")
    recall: Recall = Field(default="nearest", description="how the recalled frames are chosen")
    relevance: float = Field(
        default=0.5, ge=0, le=1, description="for recall `diverse`: 1 is `nearest`, 0 only variety"
    )
    gate: float = Field(default=0.9, ge=-1, le=1, description="for recall `gate`: least cosine to be recalled")
    keys: Literal["average", "encoder"] = Field(default="average", description="what frames are compared by")
    encoder: str | None = Field(
        default=None, description="file of the retrieval encoder, for keys `encoder`; the embedded model has its own"
    )
    archive: Literal["auto", Tier] = Field(
        default="device",
        description="where keys and values out of the window go: `device`, `host`, `disk` (all exact), `host-int8`, "
        "`recompute` (nearly so); `auto` takes the first exact one that fits",
    )

    @property
    def recalls(self) -> bool:
        """Whether frames out of the window are seen again, so that an archive is needed."""
        return self.policy == "retrieval" and self.retrieved > 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policy == "native" and self.retrieved:
            raise ValueError("the native policy recalls nothing: `retrieved` must be 0")
        if self.policy == "retrieval" and self.window is None:
            raise ValueError("the retrieval policy needs a finite `window`")
        if self.window is not None and self.sink >= self.window:
            raise ValueError(f"a sink of {self.sink} frames leaves nothing of a window of {self.window}")
        return self


class BackboneConfig(Config):
    """The model that writes the video, and the latents it writes."""

    family: Literal["tiny", "wan"] = Field(description="the embedded model, or a Wan2.1 checkpoint")
    weights: str | None = Field(default=None, description="transformer checkpoint, in the weights folder")
    ema: bool = Field(default=False, description="read the EMA weights of the checkpoint")
    lora: str | None = Field(default=None, description="LoRA checkpoint to merge, in the weights folder")
    lora_alpha: float = Field(default=256.0, gt=0, description="scale of the LoRA, divided by its rank")
    base: str | None = Field(default=None, description="folder of VAE and text encoder in Diffusers format")
    frames_per_block: Literal[1, 3] = Field(default=3, description="latent frames denoised together")
    height: int = Field(default=60, gt=0, description="of a latent frame, in latent pixels")
    width: int = Field(default=104, gt=0, description="of a latent frame, in latent pixels")
    fps: int = Field(default=16, gt=0, description="video frames a second")


class VideoConfig(Config):
    """How the video file is written."""

    upscale: int = Field(default=1, ge=1, le=16, description="enlarge each frame by a whole factor when writing")
    crf: int = Field(default=18, ge=0, le=51, description="x264 quality: 0 lossless, 51 worst")


class RunConfig(Config):
    """One configuration: a backbone with a sampler and a memory."""

    name: str = Field(description="preset it came from")
    method: Literal["native", "retrieval"] = Field(description="memory it runs with")
    about: str = Field(default="", description="one line for lists")
    backbone: BackboneConfig
    sampler: SamplerConfig = SamplerConfig()
    memory: MemoryConfig = MemoryConfig()
    video: VideoConfig = VideoConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        memory, block = self.memory, self.backbone.frames_per_block
        if memory.window is not None:
            local = memory.window - memory.sink - memory.retrieved
            if local < block:
                raise ValueError(
                    f"a window of {memory.window} less sink {memory.sink} and retrieved {memory.retrieved} leaves "
                    f"{local} local frames, fewer than the {block} of a block"
                )
        if memory.policy == "retrieval" and memory.sink > block:
            raise ValueError(f"a sink of {memory.sink} is longer than a block of {block}: not defined with retrieval")
        return self

    def latent_frames(self, seconds: float) -> int:
        """Whole blocks of latent frames that last at least ``seconds``."""
        video_frames = math.ceil(round(seconds * self.backbone.fps, 6))
        latent = 1 + math.ceil(max(0, video_frames - 1) / TEMPORAL_RATIO)
        block = self.backbone.frames_per_block
        return block * math.ceil(latent / block)


class ModelShape(Config):
    """Sizes of a Wan model, named as diffusers names them; by default those of Wan2.1-T2V-1.3B."""

    num_layers: int = Field(default=30, gt=0, description="transformer layers")
    num_attention_heads: int = Field(default=12, gt=0, description="attention heads of a layer")
    attention_head_dim: int = Field(default=128, ge=8, multiple_of=2, description="channels of a head")
    ffn_dim: int = Field(default=8960, gt=0, description="channels inside the feed-forward part")
    in_channels: int = Field(default=16, gt=0, description="channels of a latent frame")
    patch_size: tuple[Literal[1], PositiveInt, PositiveInt] = Field(
        default=(1, 2, 2), description="latent frames, rows and columns that make a token"
    )
    text_dim: int = Field(default=4096, gt=0, description="channels of the text encoder")
    freq_dim: int = Field(default=256, gt=0, multiple_of=2, description="channels of the timestep's sinusoids")
    vae_base_dim: int = Field(default=96, gt=0, description="channels of the VAE at full resolution")

    @model_validator(mode="before")
    @classmethod
    def _sizes_alone(cls, content: Any) -> Any:
        """A model's own ``transformer/config.json`` says more than sizes; the rest is left out."""
        if not isinstance(content, dict) or "_class_name" not in content:
            return content
        if content["_class_name"] != "WanTransformer3DModel":
            raise ValueError(f"a `{content['_class_name']}` is not of Wan's kind")
        enters, leaves = content.get("in_channels"), content.get("out_channels")
        if leaves is not None and enters != leaves:
            raise ValueError(f"{enters} channels go in and {leaves} come out, but it must write what it reads")
        return {name: value for name, value in content.items() if name in cls.model_fields}


def video_frames(latent_frames: int) -> int:
    """Video frames that latent frames decode to: 4(n-1)+1."""
    return TEMPORAL_RATIO * (latent_frames - 1) + 1
