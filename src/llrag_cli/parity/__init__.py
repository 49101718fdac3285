"""Replaying golden vectors of the original system: ``replay`` finds the cases in a folder and runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llrag_cli.errors import LlragError, closest
from llrag_cli.files.guarded import reason_of
from llrag_cli.parity.checkpoints import formats, manifest
from llrag_cli.parity.checks import Check, Golden, read_json
from llrag_cli.parity.generation import commit_rule, generation, lora, prompt_switch, read_locus
from llrag_cli.parity.parts import autoencoder, scheduler, units, vae

__all__ = ["BUNDLED", "Check", "Golden", "replay"]

BUNDLED = Path(__file__).parent / "vectors"

Case = Callable[[Golden, str, dict[str, Any], Path], Iterator[Check]]


KINDS: Mapping[str, Case] = {  # how a case is replayed whose JSON has a `kind`
    "first_chunk": generation,
    "prompt_switch": prompt_switch,
    "commit_rule": commit_rule,
    "read_locus": read_locus,
}


def replay(golden: Golden) -> Iterator[Check]:
    """Every check of every case in the folder, in order of names. Raises ``LlragError`` for an unknown `kind`."""
    files = [*sorted(golden.folder.glob("*.json")), *sorted(golden.folder.glob("*/*.json"))]
    cases = []
    for file in files:
        with _reading(file):
            about = read_json(file)
            if (case := _case(file, about)) is not None:
                cases.append((file, about, case))
    if not any(case is not _skip for _, _, case in cases):
        raise LlragError(f"`{golden.folder}` holds no golden case", hint="expected NAME.json beside NAME.safetensors")
    for file, about, case in cases:
        with _reading(file):
            yield from case(golden, file.stem, about, file.parent)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise what a case that is damaged or incomplete leads to as an ``LlragError`` that names it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        problem = f"`{file}` is not a golden case, or is damaged: {type(error).__name__}: {reason_of(error)}"
        raise LlragError(problem, hint="fetch the golden vectors again") from error


def _case(file: Path, about: Mapping[str, Any]) -> Case | None:
    """How a case is replayed: by its `kind`, otherwise by what its JSON holds; None for files that are no case."""
    if "kind" in about:
        if about["kind"] not in KINDS:
            raise LlragError(f"`{file}` has the unknown kind `{about['kind']}`", hint=closest(about["kind"], KINDS))
        return KINDS[about["kind"]]
    tensors = about.get("tensors", {})
    cases: tuple[tuple[bool, Case], ...] = (
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
    return next((case for fits, case in cases if fits), None)


def _skip(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    yield from ()  # weights and inputs: other cases use them
