"""Everything one configuration needs, loaded: text encoder, backbone, decoder and what frames are compared by."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.devices import find_device, find_dtype
from llrag_cli.engine.execution import Execution, new_backbone, require_attention
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.image import read_image
from llrag_cli.files.paths import weights_folder
from llrag_cli.memory.encoder import EncoderConfig, load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.models.family import family_of, require_files
from llrag_cli.models.text import TextEncoder
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.planning import Budget, plan
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule


@dataclass
class Pipeline:
    """A configuration ready to run; ``blocks`` writes videos, ``decoder`` turns their latents into frames."""

    config: RunConfig
    backbone: WanBackbone
    text: TextEncoder
    decoder: Decoder
    encode_key: KeyEncoder
    folder: Path  # of weights

    @classmethod
    def load(
        cls,
        config: RunConfig,
        *,
        device: str = "auto",
        dtype: str = "auto",
        weights: Path | None = None,
        how: Execution | None = None,
        prompts: Sequence[str] = (),
    ) -> Pipeline:
        """Load a configuration's weights; raises ``LlragError`` before any work if something is not there.

        The prompts that are known already are encoded before the backbone is read, so that a large text encoder
        and the backbone are never in memory together.
        """
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

    def blocks(
        self,
        prompts: Sequence[str],
        *,
        seconds: float,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        image: Path | None = None,
        scratch: Path | None = None,
    ) -> Iterator[Block]:
        """Write one video a prompt, all in one batch, block by block.

        A video depends on its prompt, the seed and its sample number (0, 1, ... unless given), not on the batch.
        With an ``image`` (any size, cut to the video's shape) it opens with that; only frame-wise backbones can.
        Files of the archive go to the folder ``scratch``, else to that for temporary files.
        """
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise UsageError("a prompt is empty", hint="say in a sentence what the video shows")
        given = None if image is None else self.image_latent(image).expand(len(prompts), -1, -1, -1, -1)
        embeddings = self.text.encode(prompts)
        yield from self.blocks_of(embeddings, seconds=seconds, seed=seed, samples=samples, given=given, scratch=scratch)

    def image_latent(self, image: Path) -> Tensor:
        """The latent frame [1, 1, C, h, w] of a picture."""
        require_framewise(self.config)
        size = self.config.height, self.config.width
        return self.decoder.encode(read_image(image, size=size)[None])

    def blocks_of(
        self,
        embeddings: Tensor,
        *,
        seconds: float,
        seed: int = 0,
        samples: Sequence[int] | None = None,
        given: Tensor | None = None,
        later_prompts: Mapping[int, Tensor] | None = None,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Iterator[Block]:
        """As ``blocks``, for prompt embeddings [B, text, D] and latents [B, frames, C, h, w] that open the video.

        ``later_prompts`` [B, text, D] take over at the block of their number.
        """
        config = self.settled(seconds, batch=len(embeddings), scratch=scratch).config
        numbers = range(len(embeddings)) if samples is None else samples
        yield from rollout(
            self.backbone,
            embeddings,
            frames=config.latent_frames(seconds),
            shape=(self.backbone.channels, config.backbone.height, config.backbone.width),
            block=config.backbone.frames_per_block,
            schedule=schedule_of(config),
            memory=config.memory,
            history=History(self.encode_key, frames=config.latent_frames(seconds)),
            noise=AddressedNoise(seed, numbers),
            context_timestep=config.sampler.context_timestep,
            given=given,
            later_prompts=later_prompts,
            scratch=scratch,
            clock=clock,
        )

    def settled(self, seconds: float, *, batch: int = 1, scratch: Path | None = None) -> Pipeline:
        """The same with the archive's tier chosen, if it is `auto`: by what is free now, weights being loaded."""
        if self.config.memory.archive != "auto":
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

    def beside(self, config: RunConfig, *, how: Execution | None = None) -> Pipeline:
        """The same weights, held once, under another memory: both can write videos in turns, block by block.

        ``config`` differs in its memory alone, and finds frames as this one does. Weights cannot be offloaded.
        """
        transformer = self.backbone.transformer
        shared = {id(parameter): parameter for parameter in transformer.parameters()}
        twin = new_backbone(copy.deepcopy(transformer, shared), self.backbone.device, how or Execution())
        keys = self.encode_key if config.memory.policy == "retrieval" else average_pool
        return replace(self, config=config, backbone=twin, encode_key=keys)


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


def require_framewise(config: RunConfig) -> None:
    """Raise an error unless a configuration can start from a picture."""
    block = config.backbone.frames_per_block
    if block != 1:
        raise UsageError(
            f"`{config.name}` writes blocks of {block} latent frames, so it cannot open with one picture",
            hint="use a frame-wise backbone, for example `causal-forcing-framewise`",
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
    return FlowMatchSchedule(steps=config.sampler.steps, shift=config.sampler.shift, warp=config.sampler.warp)
