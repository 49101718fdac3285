"""Everything one configuration needs, loaded: text encoder, backbone, decoder and what frames are compared by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from llrag_cli.cache.sharing import Sharing
from llrag_cli.config import RunConfig
from llrag_cli.engine.decoding import prepare_decoder
from llrag_cli.engine.determinism import set_deterministic
from llrag_cli.engine.devices import find_device, find_dtype
from llrag_cli.engine.execution import Execution, new_backbone, require_graphs, require_working
from llrag_cli.engine.rollout import rollout
from llrag_cli.engine.session import Session
from llrag_cli.engine.shots import Change, Reference
from llrag_cli.engine.sources import Sources
from llrag_cli.errors import LlragError, LoadingMemoryError, UsageError
from llrag_cli.files.paths import weights_folder
from llrag_cli.files.resources import out_of_memory
from llrag_cli.memory.encoder import EncoderConfig, load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.attention import require_attention
from llrag_cli.models.eight_bit import require_eight_bit
from llrag_cli.models.family import family_of, require_files
from llrag_cli.models.text import TextEncoder
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.planning import Budget, plan
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import ShotSpan, Timeline, one_shot, plan_timeline


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
        config.memory.require_ready()
        how = how or Execution()
        require_attention(how.attention)
        family, folder = family_of(config), weights or weights_folder()
        set_deterministic(device, fast=how.fast)
        compute_device = find_device(device)
        require_graphs(how, compute_device)
        compute_dtype = find_dtype(dtype, compute_device, family=family)
        require_files(config, folder)
        require_eight_bit(
            config.backbone.quantize,
            device=compute_device,
            dtype=compute_dtype,
            compiled=how.compile,
            offload=how.offload,
        )
        sizes = family.transformer_sizes(config, folder, compute_dtype)
        head_dim = sizes.dim // sizes.heads
        require_working(how.attention, device=compute_device, dtype=compute_dtype, head_dim=head_dim)
        encoder = None
        with _memory_for_weights():
            if (file := family.files(config, folder).get("memory.encoder")) is not None:
                encoder = load_encoder(file, device=compute_device)
                require_fit(encoder.config, config, channels=encoder.config.in_channels)  # before much is read
            models = family.load(config, folder, device=compute_device, dtype=compute_dtype, prompts=prompts)
            backbone = new_backbone(models.transformer, compute_device, how, config)
            prepare_decoder(models.decoder, compute_device, how, config)
        if encoder is not None:
            require_fit(encoder.config, config, channels=backbone.channels)
        return cls(config, backbone, models.text, models.decoder, encoder or average_pool, folder)

    def start(
        self,
        what: str | Sequence[str] | Scene | Timeline,
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] = 0,
        samples: Sequence[int] | None = None,
        image: Path | None = None,
        initial_latents: Tensor | None = None,
        committed: Tensor | None = None,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Session:
        """Begin a video of a prompt, at least ``seconds`` long, or of a scene, whose shots have lengths of their own.

        Several prompts are a batch of videos, one for each; several seeds, or ``samples``, are a batch of one prompt or
        scene. A video depends on its prompts, its seed and its sample number (0, 1, ... unless ``samples`` says
        otherwise; 0 where each has its own seed), not on the batch. The video of a prompt may open with an ``image``
        (any size, cropped to the video's shape; only frame-wise backbones) or with ``initial_latents`` [B, whole blocks
        of frames, C, h, w]. Blocks that an earlier session of the same video wrote may be given as ``committed`` [B, F,
        C, h, w]: they are not generated again. Files of the archive are in the folder ``scratch``, or in that for
        temporary files. Parts of a block are timed by ``clock``, in seconds.

        Raises ``UsageError`` for an empty prompt, an invalid length, or a file that cannot be used.
        """
        config = self.config
        timeline, prompts = self._timeline(what, seconds=seconds, image=image)
        if not prompts or not all(text.strip() for text in (*prompts, *(shot.prompt for shot in timeline.shots))):
            raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows")
        if isinstance(seed, int):
            samples = range(len(prompts)) if samples is None else samples
            seeds = [seed] * len(samples)
        else:
            seeds = [*seed]
            samples = [0] * len(seeds) if samples is None else samples
        batch = len(seeds)
        prompts = prompts * batch if len(prompts) == 1 else prompts
        if len(prompts) != batch:
            raise UsageError(f"{len(prompts)} prompts for a batch of {batch} videos", hint="give one for each, or one")
        config = self.with_archive(timeline, batch=batch, scratch=scratch).config
        sources = Sources(config, self.decoder, channels=self.backbone.channels)

        def change_of(shot: ShotSpan) -> Change:
            texts = prompts if shot.start == 0 else [shot.prompt] * batch
            first, stop = (block * timeline.frames_per_block for block in (shot.start, shot.start + shot.given_blocks))
            given = None
            if stop > first:
                known = committed is not None and committed.shape[1] >= stop
                given = committed[:, first:stop] if known and committed is not None else sources.opening(shot)
            return Change(
                prompt=self.text.encode(texts),
                cut=shot.kind == "cut",
                keeps_sink=shot.sink != shot.name,
                recache=shot.recache,
                remembered=timeline.remembered(shot) if shot.remember != "all" else None,
                pinned=timeline.pinned_for(shot),
                noise=None if shot.seed is None else AddressedNoise([shot.seed] * batch, samples),
                given=None if given is None else given.expand(batch, -1, -1, -1, -1),
            )

        changes = {shot.start: change_of(shot) for shot in timeline.shots}
        if initial_latents is not None:
            changes[0] = replace(changes[0], given=initial_latents)
        references = [
            Reference(
                latents=sources.reference(each).expand(batch, -1, -1, -1, -1),
                prompt=self.text.encode([each.prompt] * batch),
            )
            for each in timeline.references
        ]
        blocks = rollout(
            self.backbone,
            changes[0].prompt,
            frames=timeline.latent_frames,
            shape=(self.backbone.channels, config.backbone.height, config.backbone.width),
            block=config.backbone.frames_per_block,
            schedule=schedule_of(config),
            memory=config.memory,
            history=History(self.encode_key, frames=timeline.latent_frames + timeline.reference_count),
            noise=AddressedNoise(seeds, samples),
            context_timestep=config.sampler.context_timestep,
            initial_latents=committed,
            changes=changes,
            references=references,
            pinned=timeline.pinned_frames,
            scratch=scratch,
            clock=clock,
        )
        return Session(blocks, self.decoder, timeline=timeline, changes=changes, change_of=change_of)

    def _timeline(
        self, what: str | Sequence[str] | Scene | Timeline, *, seconds: float | None, image: Path | None
    ) -> tuple[Timeline, list[str]]:
        """The timeline of what is asked for, and the prompts of its first shot, one or one for each video."""
        if isinstance(what, Scene | Timeline):
            if seconds is not None or image is not None:
                raise UsageError("a scene has lengths and pictures of its own", hint="leave out `seconds` and `image`")
            timeline = plan_timeline(what, self.config) if isinstance(what, Scene) else what
            return timeline, [timeline.shots[0].prompt]
        prompts = [what] if isinstance(what, str) else list(what)
        if seconds is None or not 0 < seconds < float("inf"):
            length = "of no length" if seconds is None else f"{seconds:g} seconds long"
            raise UsageError(f"a video cannot be {length}", hint="its length in seconds must be more than 0")
        if image is not None:
            self.config.require_framewise()
        frames = self.config.latent_frames(seconds)
        first = prompts[0] if prompts else ""
        return one_shot(first, self.config, latent_frames=frames, image=image), prompts

    def with_archive(self, timeline: Timeline, *, batch: int = 1, scratch: Path | None = None) -> Pipeline:
        """The same weights with the tier of the archive chosen, if it is `auto`, by the memory that is free now."""
        memory = self.config.memory
        if not isinstance(memory, RetrievalMemory) or memory.archive != "auto":
            return self
        budget = self.budget(timeline, batch=batch, scratch=scratch)
        budget.require()
        return replace(self, config=budget.config)

    def budget(self, timeline: Timeline, *, batch: int = 1, scratch: Path | None = None) -> Budget:
        """What a video will hold in memory besides the weights, and what is free now."""
        return plan(
            self.config,
            self.folder,
            device=self.backbone.device,
            dtype=self.backbone.dtype,
            seconds=timeline.seconds,
            references=timeline.reference_count,
            pinned=timeline.pinned_frames,
            switches=timeline.switches,
            batch=batch,
            scratch=scratch,
            loaded=True,
            sharing=self.backbone.sharing,
            cuda_graphs=self.backbone.recorder is not None,
        )

    def with_memory(self, config: RunConfig) -> Pipeline:
        """The same weights under the memory of another configuration, which differs in its memory alone."""
        config.memory.require_ready()
        file, known = (family_of(each).files(each, self.folder).get("memory.encoder") for each in (config, self.config))
        if file is None:
            return replace(self, config=config, encode_key=average_pool)
        if file == known:
            return replace(self, config=config)
        encoder = load_encoder(file, device=self.backbone.device)
        require_fit(encoder.config, config, channels=self.backbone.channels)
        return replace(self, config=config, encode_key=encoder)


@contextmanager
def _memory_for_weights() -> Iterator[None]:
    """Raise ``LoadingMemoryError`` if memory runs out in this context."""
    try:
        yield
    except Exception as error:  # torch, safetensors and Python each have their own
        if not out_of_memory(error):
            raise
        raise LoadingMemoryError from error


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
    references: int = 0,
    pinned: int = 0,
    switches: bool = False,
    prompts: Sequence[str] | None = None,
    offload: bool = False,
    batch: int = 1,
    weights: Path | None = None,
    limit: int | None = None,
    scratch: Path | None = None,
    sharing: Sharing = "none",
    cuda_graphs: bool = False,
    loaded: bool = False,
) -> Budget:
    """What a run will hold in memory and what there is; reads headers only, raises if a file is missing.

    Its ``config`` is the one to run: with the tier of the archive chosen as ``planning.plan`` says, which has the
    other arguments too.
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
        references=references,
        pinned=pinned,
        switches=switches,
        prompts=prompts,
        offload=offload,
        batch=batch,
        limit=limit,
        scratch=scratch,
        loaded=loaded,
        sharing=sharing,
        cuda_graphs=cuda_graphs,
    )


def schedule_of(config: RunConfig) -> FlowMatchSchedule:
    """The sampler's timesteps and sigmas."""
    sampler = config.sampler
    return FlowMatchSchedule(
        steps=sampler.steps, shift=sampler.shift, warp=sampler.warp, first_steps=sampler.first_steps
    )
