"""A family of models is one object: what it reads, what it needs of memory, and how it is loaded.

Nothing here imports torch, nor does a family before it loads something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llrag_cli.config import LatentSpace, ModelShape, RunConfig
from llrag_cli.errors import MissingWeightsError

if TYPE_CHECKING:
    import torch

    from llrag_cli.models.reading import PromptReading
    from llrag_cli.models.text import TextEncoder
    from llrag_cli.models.vae import Decoder


@dataclass(frozen=True)
class TransformerSizes:
    """What of a transformer decides its memory."""

    weights: int  # bytes, in the dtype it runs in
    dim: int
    heads: int
    layers: int
    ffn: int
    channels: int
    patch: int  # latent pixels of a token
    item: int  # bytes of an activation


@dataclass(frozen=True)
class LoadedModels:
    """The models of a configuration: text encoder and decoder on their devices, the transformer on the CPU."""

    transformer: Any  # diffusers' `WanTransformer3DModel`
    text: TextEncoder
    decoder: Decoder


class Family(Protocol):
    """Everything that differs between one family of models and another."""

    @property
    def name(self) -> str:
        """As ``backbone.family`` has it."""
        ...

    @property
    def bundled(self) -> bool:
        """Whether the weights are in the package."""
        ...

    @property
    def bundled_encoder(self) -> Path | None:
        """The retrieval encoder in the package, if there is one."""
        ...

    @property
    def shows_sprites(self) -> bool:
        """Whether its videos show the sprite world, which has metrics of its own."""
        ...

    @property
    def latent_space(self) -> LatentSpace:
        """How latent frames relate to video."""
        ...

    @property
    def gpu_dtype(self) -> str:
        """The dtype it computes in on a GPU unless another is chosen; on a CPU that is float32."""
        ...

    @property
    def text_length(self) -> int:
        """Rows of a prompt's embedding."""
        ...

    def read_prompt(self, prompt: str) -> PromptReading | None:
        """What the models make of a prompt; None where they take any text."""
        ...

    def vocabulary(self) -> list[str]:
        """What can be drawn, in a few lines; nothing where they take any text."""
        ...

    def require_settings(self, config: RunConfig) -> None:
        """Raise ``UsageError`` if a setting is missing that this family needs."""
        ...

    def files(self, config: RunConfig, folder: Path) -> dict[str, Path]:
        """What a configuration reads from a weights folder: file or folder by the setting that names it."""
        ...

    def missing(self, config: RunConfig, folder: Path, *, decoder_only: bool = False) -> dict[str, Path]:
        """The first missing file, by the setting that names it or the folder it belongs to; of all or the decoder."""
        ...

    def transformer_sizes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> TransformerSizes:
        """Sizes of the transformer from the header of its checkpoint, or those of a ``shape``."""
        ...

    def decoder_bytes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> tuple[int, int]:
        """Bytes of the decoder's weights, and of what it holds while it decodes; too few to count are 0."""
        ...

    def text_bytes(self, config: RunConfig, folder: Path, prompts: Sequence[str] | None = None) -> int:
        """Bytes that encoding prompts (None: any) takes, before the transformer is read; too few to count are 0."""
        ...

    def load(
        self,
        config: RunConfig,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prompts: Sequence[str] = (),
    ) -> LoadedModels:
        """Read the models, what is small and may be wrong first; ``prompts`` are encoded before the transformer."""
        ...

    def load_decoder(self, config: RunConfig, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        """The decoder alone."""
        ...

    def example_prompts(self, count: int, *, seed: int) -> list[str] | None:
        """Prompts that a benchmark draws where none are given; None for a family that has none of its own."""
        ...


def require_files(config: RunConfig, folder: Path) -> None:
    """Raise an error that names the first missing file of a configuration."""
    family = family_of(config)
    family.require_settings(config)
    for setting, path in family.missing(config, folder).items():
        checkpoint = None if setting == "video.decoder" else config.backbone.weights  # what brings the rest with it
        raise MissingWeightsError(config.name, path, setting=setting, checkpoint=checkpoint)


_FAMILIES = {"tiny": "llrag_cli.models.embedded.family", "wan": "llrag_cli.models.wan.family"}


def family_of(config: RunConfig) -> Family:
    """The family of a configuration."""
    family: Family = import_module(_FAMILIES[config.backbone.family]).FAMILY
    return family
