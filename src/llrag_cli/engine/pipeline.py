"""Everything one configuration needs, loaded: text encoder, backbone, decoder and what frames are compared by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.devices import find_device, find_dtype
from llrag_cli.engine.execution import Execution, new_backbone, require_attention
from llrag_cli.engine.rollout import rollout
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.image import read_image
from llrag_cli.files.paths import weights_folder
from llrag_cli.memory.encoder import EncoderConfig, load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.family import family_of, require_files
from llrag_cli.models.text import TextEncoder
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.planning import Budget, plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule


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
        how = how or Execution()
        if how.attention is not None:
            require_attention(how.attention)
        family, folder = family_of(config), weights or weights_folder()
        compute_device = find_device(device)
        compute_dtype = find_dtype(dtype, compute_device, family=family)
        require_files(config, folder)
        encoder = None
        if (file := family.files(config, folder).get("memory.encoder")) is not None:
            encoder = load_encoder(file, device=compute_device)
            require_fit(encoder.config, config, channels=encoder.config.in_channels)  # before much is read
        models = family.load(config, folder, device=compute_device, dtype=compute_dtype, prompts=prompts)
        backbone = new_backbone(models.transformer, compute_device, how)
        if encoder is not None:
            require_fit(encoder.config, config, channels=backbone.channels)
        return cls(config, backbone, models.text, models.decoder, encoder or average_pool, folder)

    def start(
        self,
        prompt: str | Sequence[str],
        *,
        seconds: float,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        image: Path | None = None,
        initial_latents: Tensor | None = None,
        given_frames: int | None = None,
        prompt_schedule: Mapping[int, str] | None = None,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Session:
        """Begin a video of at least ``seconds``, or with several prompts a batch of videos, one for each.

        A video depends on its prompt, the seed and its sample number (0, 1, ... unless ``samples`` says otherwise), not
        on the batch. It may open with an ``image`` (any size, cropped to the video's shape; only frame-wise backbones)
        or with ``initial_latents`` [B, whole blocks of frames, C, h, w]. The first ``given_frames`` of these, by
        default all, were not generated; the others were, by an earlier session of this video. Prompts of
        ``prompt_schedule`` take over, for the whole batch, at the block of their number. Files of the archive are in
        the folder ``scratch``, or in that for temporary files. Parts of a block are timed by ``clock``, in seconds.

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
            given_frames=given_frames,
            prompt_schedule=embeddings,
            scratch=scratch,
            clock=clock,
        )
        return Session(blocks, self.decoder, block_count=frames // block)

    def image_latent(self, image: Path) -> Tensor:
        """The latent frame [1, 1, C, h, w] of a picture."""
        self.config.require_framewise()
        size = self.config.height, self.config.width
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
        file = family_of(config).files(config, self.folder).get("memory.encoder")
        if file is None:
            return replace(self, config=config, encode_key=average_pool)
        if self.encode_key is not average_pool:
            return replace(self, config=config)
        encoder = load_encoder(file, device=self.backbone.device)
        require_fit(encoder.config, config, channels=self.backbone.channels)
        return replace(self, config=config, encode_key=encoder)


def require_fit(sizes: EncoderConfig, config: RunConfig, *, channels: int) -> None:
    """Raise an error unless an encoder takes the latents that a configuration writes."""
    takes = (sizes.in_channels, sizes.spatial_h, sizes.spatial_w)
    writes = (channels, config.backbone.height, config.backbone.width)
    if takes != writes:
        raise LlragError(
            f"the retrieval encoder was made for latents of {'x'.join(map(str, takes))}, "
            f"`{config.name}` writes {'x'.join(map(str, writes))}",
            hint="use an encoder trained for this backbone, or set `memory.keys` to `average`",
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
    """What a run will hold in memory and what there is; reads headers only, raises if a file is missing.

    Its ``config`` is the one to run: with the tier of the archive chosen as ``budget.plan`` says.
    """
    compute_device = find_device(device)
    folder = weights or weights_folder()
    require_files(config, folder)
    return plan(
        config,
        folder,
        device=compute_device,
        dtype=find_dtype(dtype, compute_device, family=family_of(config)),
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
