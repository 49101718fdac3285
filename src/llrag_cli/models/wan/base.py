"""The folder that Wan backbones share: text encoder, tokenizer, VAE and configuration, in either official layout.

``Wan2.1-T2V-1.3B-Diffusers`` has a folder for each; the original ``Wan2.1-T2V-1.3B`` has
``models_t5_umt5-xxl-enc-bf16.pth``, ``google/umt5-xxl``, ``Wan2.1_VAE.pth`` and one ``config.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llrag_cli.errors import DamagedFileError, LlragError
from llrag_cli.files.guarded import UnreadableError, parse_json, read_bytes, reason_of
from llrag_cli.files.records import read_shards
from llrag_cli.files.resources import out_of_memory

ORIGINAL_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
ORIGINAL_VAE = "Wan2.1_VAE.pth"
TEXT_LENGTH = 512  # tokens of a prompt


def base_folder(folder: Path, name: str) -> Path:
    """The base of a preset in a weights folder; where only the original Wan files are there, those."""
    original = name.removesuffix("-Diffusers")
    wanted = folder / name
    return folder / original if not wanted.exists() and (folder / original).exists() else wanted


class WanBase:
    """Where the shared parts are in a folder; nothing is read but JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.original = not (folder / "vae").is_dir() and (folder / ORIGINAL_VAE).exists()

    @property
    def text_encoder(self) -> Path:
        """The text encoder: a file, or a folder in Diffusers format."""
        return self.folder / (ORIGINAL_TEXT if self.original else "text_encoder")

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.folder / ("google/umt5-xxl" if self.original else "tokenizer")

    @property
    def vae(self) -> Path:
        """The VAE: a file, or a folder in Diffusers format."""
        return self.folder / (ORIGINAL_VAE if self.original else "vae")

    def missing(self, *, vae_only: bool = False) -> list[Path]:
        """Files and folders that should be there and are not; a model in shards needs every shard."""
        models = [self.vae] if vae_only else [self.text_encoder, self.vae]
        needed = models if vae_only else [*models, self.tokenizer]
        if missing := [path for path in needed if not path.exists()]:
            return missing
        files = [*self.vae_files()] if vae_only else [*self.weight_files()]
        if not vae_only:
            files.append(_either(self.tokenizer, "tokenizer.json", "spiece.model"))
        if not self.original:
            files += [model / "config.json" for model in models]
        return [file for file in files if not file.exists()]

    def weight_files(self) -> list[Path]:
        """The files of tensors that should be there."""
        return [*self.text_weight_files(), *self.vae_files()]

    def text_weight_files(self) -> list[Path]:
        """Those of the text encoder."""
        if self.original:
            return [self.text_encoder]
        return _shards(self.text_encoder, "model.safetensors", "pytorch_model.bin")

    def vae_files(self) -> list[Path]:
        """Those of the VAE."""
        if self.original:
            return [self.vae]
        return _shards(self.vae, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

    def heads(self) -> int | None:
        """Attention heads of the transformer, which its tensors do not say; None without a configuration."""
        file = self.folder / ("config.json" if self.original else "transformer/config.json")
        if not file.exists():
            return None
        key = "num_heads" if self.original else "num_attention_heads"
        heads = _json(file).get(key)
        if type(heads) is not int or not 1 <= heads <= 1024:
            raise DamagedFileError(file, f"it has no `{key}`", kind="a model configuration")
        return heads

    def vae_config(self) -> dict[str, Any]:
        """The VAE's own configuration; empty in the original layout, where its tensors say all."""
        return {} if self.original else _json(self.vae / "config.json")

    def text_files(self) -> list[Path]:
        """The files that make prompt embeddings what they are."""
        if self.original:
            folders, files = [self.tokenizer], [self.text_encoder]
        else:
            folders, files = [self.text_encoder, self.tokenizer], []
        return sorted([*files, *(file for folder in folders for file in folder.glob("*") if file.is_file())])


@contextmanager
def reading(path: Path, *, kind: str) -> Iterator[None]:
    """Turn whatever a library raises about a damaged file into a ``DamagedFileError`` that names it."""
    try:
        yield
    except LlragError:
        raise
    except Exception as error:  # every library fails in its own way
        if out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(path, reason, kind=kind) from error


def _shards(folder: Path, *names: str) -> list[Path]:
    """The files of a model that is saved under one of some names, whole or in shards with an index."""
    for name in names:
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / shard for shard in sorted(read_shards(index))]
    return [_either(folder, *names)]


def _either(folder: Path, *names: str) -> Path:
    """The first of some files that exists; none of them, the first."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(file))
    except (OSError, UnreadableError) as error:
        raise DamagedFileError(file, reason_of(error), kind="JSON") from None
    if not isinstance(content, dict):
        raise DamagedFileError(file, "it is not an object", kind="JSON")
    return content
