"""Wan2.1 as a family: a transformer of its own for each backbone, and a base that all of them share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llrag_cli.config import LATENT_SPACES, ModelShape, RunConfig
from llrag_cli.errors import LlragWarning, UnsupportedModelError, UsageError
from llrag_cli.files.paths import cache_folder
from llrag_cli.files.resources import free_memory
from llrag_cli.models.eight_bit import EightBitFile, eight_bit_bytes, is_eight_bit, quantize, require_torchao
from llrag_cli.models.family import LoadedModels, TransformerSizes
from llrag_cli.models.wan.base import TEXT_LENGTH, WanBase, base_folder
from llrag_cli.models.weights import converted, encoder_file, encoding_memory

if TYPE_CHECKING:
    import torch

    from llrag_cli.files.tensors import State
    from llrag_cli.models.reading import PromptReading
    from llrag_cli.models.vae import Decoder

TINY_DECODER = "taew2_1.safetensors"  # in the weights folder
UMT5_XXL = 11_361_820_672  # bytes of the encoder's weights in bfloat16
# Wan2.1-T2V-1.3B with weights of one byte, for plans made before anything is downloaded
WAN_1_3B = TransformerSizes(
    weights=1_418_996_800, dim=1536, heads=12, layers=30, ffn=8960, channels=16, patch=4, item=1
)


class WanFamily:
    """Backbones of the shape of Wan2.1-T2V, of any size."""

    name = "wan"
    latent_space = LATENT_SPACES["wan"]
    bundled = False
    shows_sprites = False
    bundled_encoder = None
    gpu_dtype = "bfloat16"
    text_length = TEXT_LENGTH

    def read_prompt(self, prompt: str) -> PromptReading | None:
        """As ``Family.read_prompt``: any text."""
        return None

    def vocabulary(self) -> list[str]:
        """As ``Family.vocabulary``."""
        return []

    def require_settings(self, config: RunConfig) -> None:
        """As ``Family.require_settings``: transformer and base, and the encoder if one is used."""
        for setting in ("weights", "base"):
            if getattr(config.backbone, setting) is None:
                raise UsageError(f"`backbone.{setting}` is not set", hint="a Wan backbone needs its files named")
        require_torchao(config)
        memory = encoding_memory(config)
        if memory is not None and memory.encoder is None:
            raise UsageError(
                "`memory.keys` is `encoder` but `memory.encoder` names no file",
                hint="set `memory.encoder` to the file of a retrieval encoder, or `memory.keys` to `average`",
            )

    def files(self, config: RunConfig, folder: Path) -> dict[str, Path]:
        """As ``Family.files``; where a checkpoint has been converted to safetensors, those are read."""
        backbone = config.backbone
        checkpoints = {"backbone.weights": backbone.weights, "backbone.lora": backbone.lora}
        files = {setting: converted(folder / name) for setting, name in checkpoints.items() if name is not None}
        files |= encoder_file(config, folder)
        if backbone.base is not None:
            files["backbone.base"] = base_folder(folder, backbone.base)
        if config.video.decoder == "tiny":
            files["video.decoder"] = folder / TINY_DECODER
        return files

    def missing(self, config: RunConfig, folder: Path, *, decoder_only: bool = False) -> dict[str, Path]:
        """As ``Family.missing``; of the base also shards, tokenizer files and configurations."""
        missing = {}
        files = self.files(config, folder)
        if decoder_only:
            decoder = "video.decoder" if config.video.decoder == "tiny" else "backbone.base"
            files = {decoder: files[decoder]}
        for setting, path in files.items():
            if not path.exists():
                missing[setting] = path
            elif setting == "backbone.base" and (parts := WanBase(path).missing(vae_only=decoder_only)):
                missing[setting] = parts[0]
        return missing

    def transformer_sizes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> TransformerSizes:
        """As ``Family.transformer_sizes``; those of Wan2.1-T2V-1.3B if the checkpoint is not downloaded yet."""
        from llrag_cli.models.wan.checkpoints import (
            diffusers_name,
            peek,
            require_text_to_video,
            transformer_config,
        )

        item, eight_bit = dtype.itemsize, config.backbone.quantize is not None
        if shape is not None:
            return sizes_of(shape, dtype, eight_bit=eight_bit)
        files = self.files(config, folder)
        file = files.get("backbone.weights")
        if file is None or not file.exists():
            if eight_bit:
                return sizes_of(ModelShape(), dtype, eight_bit=True)
            return replace(WAN_1_3B, weights=WAN_1_3B.weights * item, item=item)
        state = peek(file, ema=config.backbone.ema)
        require_text_to_video(state, source=str(file))
        arguments = transformer_config(state, heads=1)
        dim = arguments["attention_head_dim"]
        base = files.get("backbone.base")
        return TransformerSizes(
            weights=_weight_bytes(
                {diffusers_name(name): tensor for name, tensor in state.items()}, item, eight_bit=eight_bit
            ),
            dim=dim,
            heads=(None if base is None else WanBase(base).heads()) or max(1, dim // 128),
            layers=arguments["num_layers"],
            ffn=arguments["ffn_dim"],
            channels=arguments["in_channels"],
            patch=math.prod(arguments["patch_size"]),
            item=item,
        )

    def decoder_bytes(
        self, config: RunConfig, folder: Path, dtype: torch.dtype, *, shape: ModelShape | None = None
    ) -> tuple[int, int]:
        """As ``Family.decoder_bytes``; the decoder is walked on the meta device, where nothing is computed."""
        from llrag_cli.models.wan.tiny_decoder import tiny_decoder_bytes
        from llrag_cli.models.wan.vae import decoder_bytes, require_vae

        if config.video.decoder == "tiny":
            return tiny_decoder_bytes(config.backbone.height, config.backbone.width, dtype.itemsize)
        size = config.backbone.height, config.backbone.width
        if shape is not None:
            return decoder_bytes(None, *size, dtype, base_dim=shape.vae_base_dim)
        path = self.files(config, folder).get("backbone.base")
        if path is None or not (path / "vae/config.json").exists():
            return decoder_bytes(None, *size, dtype)
        require_vae(WanBase(path).vae_config(), source=str(path / "vae"))
        return decoder_bytes(path / "vae", *size, dtype)

    def text_bytes(self, config: RunConfig, folder: Path, prompts: Sequence[str] | None = None) -> int:
        """As ``Family.text_bytes``; that of the released encoder, UMT5-XXL in bfloat16, before it is downloaded."""
        from llrag_cli.models.wan.text import WanText

        base = self.files(config, folder).get("backbone.base")
        present = base is not None and base.exists() and not WanBase(base).missing()
        text = WanText(WanBase(base), cache=_prompt_cache()) if present and base is not None else None
        if prompts is not None and (not prompts or (text is not None and text.knows(prompts))):
            return 0
        return int(1.05 * (UMT5_XXL if text is None else text.encoder_bytes()))

    def load(
        self,
        config: RunConfig,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prompts: Sequence[str] = (),
    ) -> LoadedModels:
        """As ``Family.load``. Headers and configurations are checked before the text encoder is read.

        It encodes the prompts while it has the memory to itself, and is freed before the transformer is read.
        """
        from llrag_cli.models.wan.text import WanText

        files = self.files(config, folder)
        base = WanBase(files["backbone.base"])
        self._require_supported(config, files, base)
        text = WanText(base, cache=_prompt_cache(), device=_text_device(base, device))
        _warn_of_rounding(files["backbone.weights"], dtype)
        if prompts:
            text.encode(prompts)
        transformer = _load_transformer(config, files, heads=base.heads(), dtype=dtype)
        return LoadedModels(transformer, text, self.load_decoder(config, folder, device=device, dtype=dtype))

    def load_decoder(self, config: RunConfig, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Decoder:
        """As ``Family.load_decoder``."""
        from llrag_cli.files.tensors import read_state
        from llrag_cli.models.wan.tiny_decoder import TinyWanDecoder, tiny_network_from
        from llrag_cli.models.wan.vae import WanDecoder, load_vae

        files = self.files(config, folder)

        @cache
        def full() -> Decoder:
            return WanDecoder(load_vae(WanBase(files["backbone.base"]), dtype).to(device))

        if config.video.decoder == "full":
            return full()
        file = files["video.decoder"]
        state = read_state(file, model="the tiny decoder")
        return TinyWanDecoder(tiny_network_from(state, source=str(file), dtype=dtype).to(device), full)

    def example_prompts(self, count: int, *, seed: int) -> list[str] | None:
        """As ``Family.example_prompts``: none."""
        return None

    def _require_supported(self, config: RunConfig, files: Mapping[str, Path], base: WanBase) -> None:
        """Raise an error if a file is damaged or describes a model of another shape; only headers are read."""
        from llrag_cli.files.tensors import read_shapes
        from llrag_cli.models.wan.checkpoints import load_transformer, peek
        from llrag_cli.models.wan.vae import require_vae

        if "video.decoder" in files:
            read_shapes(files["video.decoder"])
        source = str(files["backbone.weights"])
        state = peek(files["backbone.weights"], ema=config.backbone.ema)
        transformer: Any = load_transformer(state, source=source, heads=base.heads())
        vae = base.vae_config()
        require_vae(vae, source=str(base.vae))
        reads, channels = transformer.config.in_channels, vae.get("z_dim", transformer.config.in_channels)
        if reads != channels:
            raise UnsupportedModelError(
                str(base.vae),
                f"its latents have {channels} channels, the transformer `{source}` reads {reads}",
                hint="set `backbone.base` to the base that the transformer belongs to",
            )
        for file in base.weight_files():
            read_shapes(file)


def _prompt_cache() -> Path:
    """Where embeddings of prompts are kept."""
    return cache_folder() / "prompts"


def sizes_of(shape: ModelShape, dtype: torch.dtype, *, eight_bit: bool = False) -> TransformerSizes:
    """Sizes of a transformer of a shape, built on the meta device."""
    import torch
    from diffusers import WanTransformer3DModel

    from llrag_cli.models.wan.checkpoints import transformer_arguments

    with torch.device("meta"):
        transformer = WanTransformer3DModel(**transformer_arguments(shape))
    item = dtype.itemsize
    return TransformerSizes(
        weights=_weight_bytes(dict(transformer.named_parameters()), item, eight_bit=eight_bit),
        dim=shape.num_attention_heads * shape.attention_head_dim,
        heads=shape.num_attention_heads,
        layers=shape.num_layers,
        ffn=shape.ffn_dim,
        channels=shape.in_channels,
        patch=math.prod(shape.patch_size),
        item=item,
    )


def _weight_bytes(state: Mapping[str, torch.Tensor], item: int, *, eight_bit: bool) -> int:
    """Bytes of a transformer's tensors, by their names in diffusers, in a dtype of so many bytes."""
    from llrag_cli.models.wan.checkpoints import kept_exact

    return sum(
        eight_bit_bytes(tensor.shape)
        if eight_bit and is_eight_bit(name)
        else tensor.numel() * (4 if kept_exact(name) else item)
        for name, tensor in state.items()
    )


def _load_transformer(config: RunConfig, files: Mapping[str, Path], *, heads: int | None, dtype: torch.dtype) -> Any:
    """The transformer on the CPU, its LoRA merged; each tensor is freed once it is in the dtype."""
    from llrag_cli.files.tensors import read_file
    from llrag_cli.models.wan.checkpoints import cast, generator_state, load_transformer, lora_state, merge_lora, peek

    file = files["backbone.weights"]
    kept = None
    if config.backbone.quantize is not None:
        named = [files[setting] for setting in ("backbone.weights", "backbone.lora") if setting in files]
        kept = EightBitFile(config.backbone, named, dtype=dtype)
        if (found := kept.read()) is not None:
            empty = load_transformer(peek(file, ema=config.backbone.ema), source=str(file), heads=heads)
            empty.load_state_dict(found, strict=True, assign=True)
            return empty
    state: State = generator_state(read_file(file), ema=config.backbone.ema, source=str(file))
    if "backbone.lora" in files:
        source = str(files["backbone.lora"])
        lora = lora_state(read_file(files["backbone.lora"]), source=source)
        state = merge_lora(state, lora, alpha=config.backbone.lora_alpha, source=source)
        del lora
    transformer = load_transformer(state, source=str(file), heads=heads)
    del state
    cast(transformer, dtype)
    if config.backbone.quantize is not None and kept is not None:
        quantize(transformer, config.backbone.quantize)
        kept.write(transformer)
    return transformer


def _warn_of_rounding(file: Path, dtype: torch.dtype) -> None:
    from llrag_cli.files.tensors import DTYPES, stored_dtype

    stored = stored_dtype(file)
    if stored is not None and DTYPES[stored].itemsize < dtype.itemsize:
        wanted = str(dtype).removeprefix("torch.")
        text = f"`{file}` was rounded to {stored} when it was downloaded; download it in {wanted} for more precision"
        warnings.warn(text, LlragWarning, stacklevel=2)


def _text_device(base: WanBase, device: torch.device) -> torch.device | None:
    """Where the text encoder computes: on a GPU that has room for it, else on the CPU."""
    if device.type != "cuda":
        return None
    size = sum(file.stat().st_size for file in base.text_files())
    free = free_memory(device)
    return device if free is not None and free > 1.1 * size else None


FAMILY = WanFamily()
