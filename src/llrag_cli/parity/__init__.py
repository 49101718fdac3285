"""Replaying golden vectors of the original system: ``replay`` finds the cases in a folder and runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llrag_cli.errors import LlragError
from llrag_cli.parity.checkpoints import formats, manifest
from llrag_cli.parity.checks import Check, Golden, read_json
from llrag_cli.parity.generation import generation, lora
from llrag_cli.parity.parts import autoencoder, scheduler, units, vae

__all__ = ["BUNDLED", "Check", "Golden", "replay"]

BUNDLED = Path(__file__).parent / "vectors"

Case = Callable[[Golden, str, dict[str, Any], Path], Iterator[Check]]


def replay(golden: Golden) -> Iterator[Check]:
    """Every check of every case in the folder, in order of names."""
    files = [*sorted(golden.folder.glob("*.json")), *sorted(golden.folder.glob("*/*.json"))]
    cases = [(file, kind) for file in files if (kind := _kind(file)) is not None]
    if not any(kind is not _skip for _, kind in cases):
        raise LlragError(f"`{golden.folder}` holds no golden case", hint="expected NAME.json beside NAME.safetensors")
    for file, kind in cases:
        yield from kind(golden, file.stem, read_json(file), file.parent)


def _kind(file: Path) -> Case | None:
    """How a case is replayed, told by what its JSON holds; None for files that are no case."""
    about = read_json(file)
    tensors = about.get("tensors", {})
    marks: tuple[tuple[bool, Case], ...] = (
        ("num_tensors" in about, manifest),
        ("checksum" in about and "files" in about, formats),
        ("generations" in about, lora),
        ("loss_values" in about, autoencoder),
        ("config" in about and "latents" in tensors, generation),
        ("patch.latents" in tensors, units),
        (any(name.endswith(".sigmas") for name in tensors), scheduler),
        ("decode_full" in tensors, vae),
        ("tensors" in about and (file.stem.startswith("weights") or "noise" in tensors), _skip),
    )
    return next((kind for fits, kind in marks if fits), None)


def _skip(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    yield from ()  # weights and inputs: other cases use them
