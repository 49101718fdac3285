"""The files of a configuration that every family finds alike."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.memory.strategies import RetrievalMemory


def encoding_memory(config: RunConfig) -> RetrievalMemory | None:
    """The memory of a configuration, if it compares past frames by a retrieval encoder."""
    memory = config.memory
    return memory if isinstance(memory, RetrievalMemory) and memory.keys == "encoder" else None


def encoder_file(config: RunConfig, folder: Path, *, bundled: Path | None = None) -> dict[str, Path]:
    """The retrieval encoder, by its setting, if one is used: the one that is named, or that in the package."""
    memory = encoding_memory(config)
    if memory is None:
        return {}
    if memory.encoder is not None:
        return {"memory.encoder": converted(folder / memory.encoder)}
    return {} if bundled is None else {"memory.encoder": bundled}


def converted(path: Path) -> Path:
    """A checkpoint, or the safetensors it was converted to if only those are there.

    A file that exists is the one that is read: another one of nearly its name may be anybody's.
    """
    rewritten = path.with_suffix(".safetensors")
    return rewritten if rewritten.exists() and not path.exists() else path
