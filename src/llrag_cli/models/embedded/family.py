"""The embedded model as a family: everything is in the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llrag_cli.config import LATENT_SPACES, ModelShape, RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.models.eight_bit import quantize, require_torchao
from llrag_cli.models.embedded.vocabulary import LENGTH, described, read_prompt
from llrag_cli.models.family import LoadedModels, TransformerSizes
from llrag_cli.models.reading import PromptReading
from llrag_cli.models.weights import encoder_file

if TYPE_CHECKING:
    import torch

    from llrag_cli.models.vae import Decoder

BUNDLED = Path(__file__).parent / "weights"
WEIGHTS = 11 * 2**20  # bytes of the transformer, for a plan


class EmbeddedFamily:
    """Sprites on a wall, small enough for any CPU."""

    name = "tiny"
    latent_space = LATENT_SPACES["tiny"]
    bundled = True
    shows_sprites = True
    bundled_encoder = BUNDLED / "encoder.safetensors"
    gpu_dtype = "float32"
    text_length = LENGTH

    def read_prompt(self, prompt: str) -> PromptReading:
        """As ``Family.read_prompt``."""
        return read_prompt(prompt)

    def vocabulary(self) -> list[str]:
        """As ``Family.vocabulary``."""
        return described()

    def require_settings(self, config: RunConfig) -> None:
        """As ``Family.require_settings``: none are needed, and files that would not be read are refused."""
        if config.video.decoder != "full":
            raise UsageError(
                "`video.decoder` is `tiny`, but the embedded model has one decoder",
                hint="leave `video.decoder` at `full`, or use a backbone of another family",
            )
        require_torchao(config)
        for setting in ("lora", "base"):
            if getattr(config.backbone, setting) is not None:
                raise UsageError(
                    f"`backbone.{setting}` is set, but the embedded model does not read it",
                    hint=f"leave out `backbone.{setting}`, or use a backbone of another family",
                )

    def files(self, config: RunConfig, folder: Path) -> dict[str, Path]:
        """As ``Family.files``: backbone and retrieval encoder can be others than the bundled ones.

        A name of backbone weights in the package, such as those of the presets `tiny-*`, is that file.
        """
        files = encoder_file(config, folder, bundled=self.bundled_encoder)
        if (name := config.backbone.weights) is not None:
            own = BUNDLED / name
            files["backbone.weights"] = own if Path(name).name == name and own.is_file() else folder / name
        return files

    def missing(self, config: RunConfig, folder: Path, *, decoder_only: bool = False) -> dict[str, Path]:
        """As ``Family.missing``; the decoder is in the package."""
        if decoder_only:
            return {}
        return {setting: path for setting, path in self.files(config, folder).items() if not path.exists()}

    def transformer_sizes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> TransformerSizes:
        """As ``Family.transformer_sizes``; it has one shape."""
        from llrag_cli.models.embedded.model import TRANSFORMER

        heads = TRANSFORMER["num_attention_heads"]
        return TransformerSizes(
            weights=WEIGHTS,
            dim=heads * TRANSFORMER["attention_head_dim"],
            heads=heads,
            layers=TRANSFORMER["num_layers"],
            ffn=TRANSFORMER["ffn_dim"],
            channels=TRANSFORMER["in_channels"],
            patch=math.prod(TRANSFORMER["patch_size"]),
            item=dtype.itemsize,
        )

    def decoder_bytes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> tuple[int, int]:
        """As ``Family.decoder_bytes``: too few to count."""
        return 0, 0

    def text_bytes(self, config: RunConfig, folder: Path, prompts: Sequence[str] | None = None) -> int:
        """As ``Family.text_bytes``: too few to count."""
        return 0

    def load(
        self,
        config: RunConfig,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prompts: Sequence[str] = (),
    ) -> LoadedModels:
        """As ``Family.load``."""
        from llrag_cli.models.embedded.model import load_embedded
        from llrag_cli.models.embedded.text import TinyTextEncoder
        from llrag_cli.models.embedded.vae import TinyDecoder
        from llrag_cli.models.wan.checkpoints import cast

        transformer, text, vae = load_embedded(self.files(config, folder).get("backbone.weights"))
        cast(transformer, dtype)
        if config.backbone.quantize is not None:
            quantize(transformer, config.backbone.quantize)
        return LoadedModels(transformer, TinyTextEncoder(text.to(device)), TinyDecoder(vae.to(device)))

    def load_decoder(self, config: RunConfig, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        """As ``Family.load_decoder``, in float32."""
        from llrag_cli.models.embedded.model import load_vae
        from llrag_cli.models.embedded.vae import TinyDecoder

        return TinyDecoder(load_vae(BUNDLED / "vae.safetensors").to(device))

    def example_prompts(self, count: int, *, seed: int) -> list[str] | None:
        """As ``Family.example_prompts``: scenes that were held out of training."""
        from llrag_cli.world.sprites import drawn_scenes, prompt

        return [prompt(scene) for scene in drawn_scenes(count, seed=seed)]


FAMILY = EmbeddedFamily()
