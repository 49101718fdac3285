"""Writes the vectors that ship with the package: ``python tests/parity/bundle.py``.

They are a few of the golden cases, without their intermediate tensors, cut to their first frames, and rounded to
float16, so that they stay below 1.5 MB. Rounding moves latents by up to 0.0034; the tolerance is three times that, and
typical mistakes cost 0.06 or more.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = {"native_framewise_w6_s0": 12, "rag_w10_s1_k3_r2_b3": 21}  # and their latent frames
TOLERANCE = 0.01


def write_bundle(folder: Path) -> None:
    """Write the reduced cases to a folder."""
    longest = max(CASES.values())
    inputs = load_file(GOLDENS / "inputs.safetensors")
    save(
        folder,
        "inputs",
        read("inputs", "checks", "seed", "text_valid_tokens", "note"),
        {
            "noise": inputs["noise"][:1, :longest],
            "renoise": inputs["renoise"][:, :1, :longest],
            "prompt_embeds": inputs["prompt_embeds"][:1],
        },
    )
    weights = load_file(GOLDENS / "weights_generator.safetensors")
    save(folder, "weights_generator", read("weights_generator", "checks", "arch", "seed"), weights)
    for case, frames in CASES.items():
        about = read(case, "checks", "weights", "inputs", "config", "model_class", "memory_indices_log")
        if "memory_indices_log" in about:
            about["memory_indices_log"] = [
                entry for entry in about["memory_indices_log"] if entry["query_frame"] < frames
            ]
        about["tolerance"] = {"recommended_atol": TOLERANCE}
        latents = load_file(GOLDENS / f"{case}.safetensors")["latents"]
        save(folder, case, about, {"latents": latents[:, :frames]})


def read(case: str, *keys: str) -> dict[str, Any]:
    """Some entries of a case's JSON."""
    about = json.loads((GOLDENS / f"{case}.json").read_text(encoding="utf-8"))
    return {key: about[key] for key in ("file", *keys) if key in about}


def save(folder: Path, case: str, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a case, its tensors in float16."""
    rounded = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(rounded, folder / f"{case}.safetensors")
    about["tensors"] = {
        name: {"shape": list(tensor.shape), "dtype": "float16"} for name, tensor in sorted(rounded.items())
    }
    (folder / f"{case}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from llrag_cli.parity import BUNDLED

    BUNDLED.mkdir(exist_ok=True)
    write_bundle(BUNDLED)
