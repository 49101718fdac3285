"""Which backbone runs where none is named."""

from __future__ import annotations

from llrag_cli.files.paths import weights_folder
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config


def default_backbone() -> str:
    """The first real backbone whose weights are here if there is a GPU, else the embedded one.

    Torch is imported, to look for a GPU, only where there are weights.
    """
    for name in ("self-forcing", "longlive", "causal-forcing"):
        config = load_config(name)
        if not family_of(config).missing(config, weights_folder()):
            import torch

            return name if torch.cuda.is_available() else "tiny"
    return "tiny"
