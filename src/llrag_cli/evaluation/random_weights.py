"""A model of any shape with random weights: as fast as a trained one, since speed does not depend on the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from llrag_cli.config import ModelShape, RunConfig
from llrag_cli.engine.decoding import prepare_decoder
from llrag_cli.engine.execution import Execution, new_backbone, require_graphs
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import UsageError
from llrag_cli.files.paths import weights_folder
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.memory.history import KeyEncoder, average_pool
from llrag_cli.models.eight_bit import quantize, require_eight_bit
from llrag_cli.models.family import family_of
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.checkpoints import cast, transformer_arguments
from llrag_cli.models.wan.tiny_decoder import CHANNELS, TinyWanDecoder, TinyWanNetwork
from llrag_cli.models.wan.vae import WanDecoder
from llrag_cli.models.weights import encoding_memory


class RandomText:
    """Embeds every prompt as the same random [B, length, D]."""

    def __init__(self, length: int, dim: int) -> None:
        self._embedding = torch.randn(1, length, dim, generator=torch.Generator().manual_seed(1))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """As ``TextEncoder.encode``."""
        return self._embedding.expand(len(prompts), -1, -1)


def random_pipeline(
    config: RunConfig, shape: ModelShape, *, device: torch.device, dtype: torch.dtype, how: Execution
) -> Pipeline:
    """A Wan pipeline of a shape with random transformer, decoder and retrieval encoder."""
    height, width = config.backbone.height, config.backbone.width
    _, rows, columns = shape.patch_size
    if height % rows or width % columns:
        raise UsageError(
            f"latent frames of {height}x{width} cannot be cut into tokens of {rows}x{columns}",
            hint="change `backbone.height`, `backbone.width` or `patch_size`",
        )
    require_graphs(how, device)
    kind = config.backbone.quantize
    require_eight_bit(kind, device=device, dtype=dtype, compiled=how.compile, offload=how.offload)
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**transformer_arguments(shape))
    transformer.rope = nn.Identity()  # WanBackbone has its own
    cast(transformer, dtype)
    transformer.to_empty(device=device)  # cast before allocating, so that no larger copy ever exists
    for name, parameter in transformer.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    if kind is not None:
        quantize(transformer, kind)
    if config.video.decoder == "tiny" and shape.in_channels != CHANNELS:
        raise UsageError(
            f"the tiny decoder reads latents of {CHANNELS} channels, not {shape.in_channels}",
            hint="leave `video.decoder` at `full`, or change `in_channels`",
        )

    def full() -> Decoder:
        return WanDecoder(_random_vae(shape, device=device, dtype=dtype))

    tiny = config.video.decoder == "tiny"
    decoder = TinyWanDecoder(TinyWanNetwork().to(device, dtype), full) if tiny else full()
    prepare_decoder(decoder, device, how, config)
    keys: KeyEncoder = average_pool
    if encoding_memory(config) is not None:
        sizes = EncoderConfig(in_channels=shape.in_channels, spatial_h=height, spatial_w=width)
        keys = LatentAutoencoder(sizes).to(device).eval().requires_grad_(requires_grad=False)
    text = RandomText(family_of(config).text_length, shape.text_dim)
    backbone = new_backbone(transformer, device, how, config)
    return Pipeline(config, backbone, text, decoder, keys, weights_folder())


def _random_vae(shape: ModelShape, *, device: torch.device, dtype: torch.dtype) -> AutoencoderKLWan:
    """A VAE of the channels of a shape."""
    with torch.device(device):
        means, deviations = [0.0] * shape.in_channels, [1.0] * shape.in_channels
        vae = AutoencoderKLWan(
            base_dim=shape.vae_base_dim, z_dim=shape.in_channels, latents_mean=means, latents_std=deviations
        )
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    return vae
