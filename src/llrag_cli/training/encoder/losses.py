"""The losses of the retrieval encoder (LongLive-RAG, section on the Window Temporal Delta Loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.memory.encoder import LatentAutoencoder


@dataclass(frozen=True)
class LossWeights:
    """Margin (a cosine), window (in frames) and weights of the training loss."""

    delta_margin: float = 0.85
    delta_weight: float = 1.0
    delta_window: int = 3
    smooth_weight: float = 1.0


@dataclass(frozen=True)
class EncoderLoss:
    """The training loss and its parts, each a scalar, already weighted."""

    recon: Tensor
    delta: Tensor
    smooth: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.recon + self.delta + self.smooth


def window_temporal_delta(embeddings: Tensor, *, margin: float, window: int) -> Tensor:
    """Mean over lags 1..window of the mean of relu(cos(e_t, e_{t+lag}) - margin); embeddings [B, S, D].

    It pushes neighbours apart, so that a frame can be told apart from the one before it.
    """
    units = F.normalize(embeddings, dim=-1)
    lags = range(1, min(embeddings.shape[1] - 1, window) + 1)
    if not lags:
        return embeddings.new_zeros(())
    hinges = [((units[:, lag:] * units[:, :-lag]).sum(-1) - margin).relu().mean() for lag in lags]
    return torch.stack(hinges).mean()


def trajectory_smoothness(embeddings: Tensor) -> Tensor:
    """Mean length of the second difference over time, sqrt(|.|^2 + 1e-8), of embeddings [B, S, D]; 0 if S < 3."""
    if embeddings.shape[1] < 3:
        return embeddings.new_zeros(())
    bend = embeddings[:, 2:] - 2 * embeddings[:, 1:-1] + embeddings[:, :-2]
    return (bend.square().sum(-1) + 1e-8).sqrt().mean()


def encoder_loss(autoencoder: LatentAutoencoder, chunk: Tensor, weights: LossWeights) -> EncoderLoss:
    """The loss on clips of latent frames [B, S, C, H, W]."""
    frames = chunk.flatten(0, 1)
    flat = autoencoder.encoder(frames)  # [B*S, D]
    embeddings = flat.unflatten(0, chunk.shape[:2])
    delta = window_temporal_delta(embeddings, margin=weights.delta_margin, window=weights.delta_window)
    return EncoderLoss(
        recon=F.mse_loss(autoencoder.decoder(flat), frames),
        delta=weights.delta_weight * delta,
        smooth=weights.smooth_weight * trajectory_smoothness(embeddings),
    )
