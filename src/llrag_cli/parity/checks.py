"""Replays golden vectors through the engine itself and measures how far it is from them.

A case is ``NAME.json`` (what it is) with ``NAME.safetensors`` (tensors of the original system). In float32 and float64
errors are largest absolute differences, held against the case's own tolerance.

In half types they are relative: the norm of the difference over the norm of the reference. A whole rollout of the plain
window must stay within ``HALF_ROLLOUT``, single parts within ``HALF_TOLERANCE``. With retrieval, rounded similarities
can tie, and then a rollout retrieves other frames than the original. So the frames retrieved are compared on the
latents of the original, where they must be the same, and latents are compared for as long as a rollout retrieves the
same frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llrag_cli.cache.tiers import Tier
from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, read_bytes, reason_of
from llrag_cli.files.tensors import read_file
from llrag_cli.models.wan.checkpoints import generator_state, load_transformer, lora_state, merge_lora
from llrag_cli.models.wan.transformer import WanBackbone

LATENTS, FINE, TABLES = 1e-4, 1e-5, 1e-6
HALF_TOLERANCE, HALF_ROLLOUT = 0.05, 0.02


@dataclass(frozen=True)
class Check:
    """One compared quantity of a case; ``error`` is None where it was left out, for the reason in ``note``."""

    case: str
    quantity: str
    error: float | None
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Within tolerance, or left out for a reason."""
        return self.error is None or self.error <= self.tolerance


class Golden:
    """A folder of golden cases, to be replayed on a device in a dtype, with the archive in a tier."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype, archive: Tier = "device") -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.archive = archive
        self.exact = dtype in (torch.float32, torch.float64)

    def tensors(self, folder: Path, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        content: dict[str, Tensor] = read_file(folder / name)
        return content

    def backbone(self, folder: Path, weights: str, *, lora: str | None = None, alpha: float = 1.0) -> WanBackbone:
        """The generator of a case, with a LoRA merged if one is named."""
        arch = read_json(folder / Path(weights).with_suffix(".json"))["arch"]
        state = generator_state(self.tensors(folder, weights), ema=False, source=weights)
        if lora is not None:
            state = merge_lora(state, lora_state(self.tensors(folder, lora)), alpha=alpha, source=lora)
        model: Any = load_transformer(state, source=weights, heads=arch["num_heads"], dtype=self.dtype)
        return WanBackbone(model.to(self.device))

    def compare(
        self,
        case: str,
        quantity: str,
        ours: Tensor,
        reference: Tensor,
        tolerance: float,
        *,
        relative: float = 0.0,
        half: float = HALF_TOLERANCE,
    ) -> Check:
        """The error of a tensor; ``relative`` adds to the tolerance a share of the reference's largest value.

        ``half`` is the tolerance in half types.
        """
        if ours.shape != reference.shape:
            return Check(case, quantity, float("inf"), tolerance, f"shape {list(ours.shape)}")
        ours, reference = ours.detach().double().cpu(), reference.double()
        difference = ours - reference
        if self.exact:
            bar = tolerance + relative * float(reference.abs().max())
            worst = float(difference.abs().max()) if difference.numel() else 0.0
            return Check(case, quantity, float("inf") if worst != worst else worst, bar)
        error = float(difference.norm() / reference.norm().clamp_min(1e-12))
        return Check(case, quantity, float("inf") if error != error else error, half, "relative")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = parse_json(read_bytes(path, limit=64 * MEGABYTE), values=10**6)
    except FileNotFoundError:
        raise LlragError(f"no such file: `{path}`", hint="the folder of golden vectors is incomplete") from None
    except (OSError, UnreadableError) as error:
        raise LlragError(
            f"`{path}` cannot be read as JSON: {reason_of(error)}", hint="fetch the golden vectors again"
        ) from None
    return content if isinstance(content, dict) else {}


def bar_of(about: Mapping[str, Any], default: float) -> float:
    """The tolerance a case recommends for itself."""
    return float(about.get("tolerance", {}).get("recommended_atol", default))
