"""Pictures, clips and finished runs as latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.clip import read_clip
from llrag_cli.files.durable import require_own
from llrag_cli.files.image import read_image
from llrag_cli.files.tensors import read_file, require_floating, require_tensors
from llrag_cli.models.vae import Decoder
from llrag_cli.scenes.sources import LATENTS, is_picture, is_run
from llrag_cli.scenes.timeline import ReferenceSpan, ShotSpan


class Sources:
    """Reads files in the shape of a configuration's video, and encodes them with its VAE."""

    def __init__(self, config: RunConfig, decoder: Decoder, *, channels: int) -> None:
        self._config, self._decoder, self._channels = config, decoder, channels

    def opening(self, shot: ShotSpan) -> Tensor:
        """The latents [1, given blocks of frames, C, h, w] that open a shot."""
        path = shot.image or shot.video
        assert path is not None
        return self._encoded(path, shot.given_blocks * self._config.backbone.frames_per_block)

    def reference(self, reference: ReferenceSpan) -> Tensor:
        """The latents [1, n, C, h, w] of a reference. Those of a run are taken as they are."""
        if not is_run(reference.path):
            return self._encoded(reference.path, reference.latent_frames)
        require_own(reference.path / LATENTS)
        content = read_file(reference.path / LATENTS)
        require_tensors(content, ["latents"], source=str(reference.path / LATENTS), model="a run")
        latents: Tensor = content["latents"]
        require_floating({"latents": latents}, source=str(reference.path / LATENTS))
        if latents.ndim != 4:
            raise UsageError(
                f"the run `{reference.path}` has latents of {latents.ndim} axes", hint="use a finished run"
            )
        if not latents.isfinite().all():
            raise UsageError(f"the run `{reference.path}` has latents that are not finite", hint="use another run")
        if len(latents) < reference.latent_frames or latents.shape[1] != self._channels:
            raise UsageError(
                f"the run `{reference.path}` has {len(latents)} latent frames of {latents.shape[1]} channels, not "
                f"{reference.latent_frames} of {self._channels}",
                hint="use a finished run of the same family of backbones",
            )
        return latents[None, : reference.latent_frames]

    def _encoded(self, path: Path, latent_frames: int) -> Tensor:
        size = self._config.height, self._config.width
        if is_picture(path):
            return self._decoder.encode(read_image(path, size=size)[None])
        frames = self._config.video_frames(latent_frames)
        return self._decoder.encode(read_clip(path, size=size, fps=self._config.backbone.fps, frames=frames)[None])
