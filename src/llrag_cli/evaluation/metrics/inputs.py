"""What metrics are computed from: a backend's models, one clip, and a video after its last clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llrag_cli.evaluation.metrics.consistency import MappingTable
from llrag_cli.evaluation.metrics.pixels import histogram
from llrag_cli.world.consistency import Consistency

Features = Callable[[Tensor], Tensor]  # frames [T, 3, H, W] in [0, 1] to [T, D]
Flow = Callable[[Tensor, Tensor], Tensor]  # two frames [3, H, W] in [0, 1] to [2, H, W] pixels, x and y


@dataclass(frozen=True)
class Backend:
    """The models that metrics are computed with; scores of different backends are never compared."""

    name: str  # its kind, and the models it has
    features: Features  # compared within clips, and over the whole video
    flow: Flow | None
    first_features: Features | None = None  # compared across clips, on their first frames; None: ``features``
    background: Features | None = None  # compared within clips
    aesthetic: Features | None = None  # frames [T, 3, H, W] to [T], in about 0..1
    mapping: MappingTable | None = None  # made for ``first_features`` and ``features``, and for no others
    licences: Mapping[str, str] = field(default_factory=dict)  # of each model
    missing: Mapping[str, str] = field(default_factory=dict)  # metrics it cannot compute on this machine, and why

    @property
    def kind(self) -> str:
        """``offline`` or ``official``."""
        return self.name.split(":")[0]


@dataclass(frozen=True)
class Digest:
    """The few numbers of a clip that later clips are compared with."""

    first: Tensor  # features [D] of the first frame
    mean: Tensor  # unit mean [D] of the features of all frames
    histogram: Tensor  # [512]


@dataclass(frozen=True)
class Clip:
    """Two seconds of a video, and the digests of earlier clips."""

    frames: Tensor  # [T, 3, H, W] in [0, 1]
    features: Tensor  # [T, D]
    fps: float
    backend: Backend
    digest: Digest
    previous: Digest | None  # of the clip before; None for the first
    opening: Digest  # of the first clip of the video


def clip_inputs(frames: Tensor, *, fps: float, backend: Backend, before: Clip | None) -> Clip:
    """Compute the features and the digest of a clip; ``before`` is the clip that precedes it."""
    features = backend.features(frames)
    first = features[0] if backend.first_features is None else backend.first_features(frames[:1])[0]
    mean = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
    digest = Digest(first.clone(), mean, histogram(frames))  # a view would keep the features of all frames
    if before is None:
        return Clip(frames, features, fps, backend, digest, previous=None, opening=digest)
    return Clip(frames, features, fps, backend, digest, previous=before.digest, opening=before.opening)


@dataclass(frozen=True)
class Video:
    """A whole video: a number for each clip and series, and the metrics computed so far."""

    per_clip: Mapping[str, list[float | None]]
    metrics: Mapping[str, float | None]
    clip_seconds: float
    backend: Backend
    sprites: Consistency | None = None  # of a video of the sprite world
