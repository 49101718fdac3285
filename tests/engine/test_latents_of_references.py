"""Latents of finished runs as references: what is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli import load_config
from llrag_cli.engine.sources import Sources
from llrag_cli.errors import UsageError
from llrag_cli.models.vae import Decoder
from llrag_cli.scenes.timeline import ReferenceSpan

LATENTS = torch.randn(6, 8, 4, 4, generator=torch.Generator().manual_seed(0))


def taken(folder: Path, latents: Tensor) -> Tensor:
    """What a reference of five latent frames of eight channels takes of the latents of a run."""
    save_file({"latents": latents.contiguous()}, folder / "latents.safetensors")
    unused = cast("Decoder", None)  # latents are taken as they are
    span = ReferenceSpan(name="run", path=folder, latent_frames=5)
    return Sources(load_config("tiny"), unused, channels=8).reference(span)


def test_the_first_frames_are_taken_as_they_are(tmp_path: Path) -> None:
    assert torch.equal(taken(tmp_path, LATENTS), LATENTS[None, :5])
    assert torch.equal(taken(tmp_path, LATENTS[:5]), LATENTS[None, :5])


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (LATENTS[:4], "has 4 latent frames of 8 channels, not 5 of 8"),
        (LATENTS[:, :7], "has 6 latent frames of 7 channels, not 5 of 8"),
        (LATENTS[0], "has latents of 3 axes"),
        (LATENTS.clone().fill_(torch.nan), "has latents that are not finite"),
    ],
)
def test_latents_that_do_not_fit_are_refused(tmp_path: Path, latents: Tensor, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        taken(tmp_path, latents)
    assert said in refused.value.problem and refused.value.hint
