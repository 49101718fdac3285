"""The embedded transformer with its text encoder, as trainings use them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llrag_cli.models.embedded.model import new_transformer
from llrag_cli.models.embedded.storage import unpacked
from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vocabulary import PAD
from llrag_cli.training.embedded.lessons import Batch
from llrag_cli.training.embedded.teacher_forcing import TeacherForced


@dataclass
class Network:
    """Transformer and text encoder, set up for teacher forcing."""

    model: nn.ModuleDict
    forced: TeacherForced
    text: TinyText

    @classmethod
    def new(cls, *, seed: int = 0) -> Network:
        """Fresh weights."""
        transformer, text = new_transformer(seed=seed), TinyText()
        return cls(nn.ModuleDict({"transformer": transformer, "text": text}), TeacherForced(transformer), text)

    @classmethod
    def of(cls, weights: Path) -> Network:
        """The weights of a file."""
        network = cls.new()
        network.model.load_state_dict(unpacked(load_file(weights)))
        return network

    def flow(self, batch: Batch, noisy: Tensor, sigma: Tensor, *, past: Tensor | None = None) -> Tensor:
        """Predicted flow (noise - clean) [B, R, T, C, h, w] of noisy blocks of that shape at sigmas [B, R].

        ``past`` are the clean rows, if they are to be other than those of the batch.
        """
        past = batch.latents[:, : batch.clean] if past is None else past
        timesteps = torch.cat((torch.zeros(len(past), batch.clean), 1000 * sigma), dim=1)
        prompts = self.text(batch.prompts.flatten(0, 1))
        if batch.prompt_of is not None:
            prompts = prompts.unflatten(0, batch.prompts.shape[:2])
        rows = torch.cat((past, noisy), dim=1)
        flow = self.forced(rows, timesteps, prompts, batch.layout, clean=batch.clean, prompt_of=batch.prompt_of)
        return flow[:, batch.clean :]

    def clean(self, batch: Batch, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Predicted clean blocks, as ``flow``."""
        return noisy - spread(sigma) * self.flow(batch, noisy, sigma)


@dataclass
class Teacher:
    """A trained network whose predictions are taken further from those for the empty prompt.

    ``guidance`` is the scale of classifier-free guidance (Ho & Salimans 2022); 1 is the prediction itself.
    """

    network: Network
    guidance: float

    @torch.no_grad()
    def flow(self, batch: Batch, noisy: Tensor, sigma: Tensor, *, past: Tensor | None = None) -> Tensor:
        """As ``Network.flow``, guided."""
        flow = self.network.flow(batch, noisy, sigma, past=past)
        if self.guidance == 1:
            return flow
        silent = replace(batch, prompts=torch.full_like(batch.prompts, PAD))
        return torch.lerp(self.network.flow(silent, noisy, sigma, past=past), flow, self.guidance)

    def clean(self, batch: Batch, noisy: Tensor, sigma: Tensor) -> Tensor:
        """As ``Network.clean``, guided."""
        return noisy - spread(sigma) * self.flow(batch, noisy, sigma)


def spread(sigma: Tensor) -> Tensor:
    """Sigmas [B, R] that broadcast along blocks [B, R, T, C, h, w]."""
    return sigma[..., None, None, None, None]


def noised(blocks: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Blocks at sigmas [B, R]."""
    noise = torch.randn(blocks.shape, generator=generator)
    return (1 - spread(sigma)) * blocks + spread(sigma) * noise
