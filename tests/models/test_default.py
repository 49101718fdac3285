"""What runs where nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from llrag_cli.config import RunConfig
from llrag_cli.models.default import default_backbone
from llrag_cli.models.wan.family import WanFamily


@pytest.mark.parametrize(
    ("gpu", "there", "chosen"),
    [
        (True, {"longlive", "causal-forcing"}, "longlive"),
        (True, {"self-forcing", "longlive"}, "self-forcing"),
        (True, {"causal-forcing"}, "causal-forcing"),
        (True, set(), "tiny"),
        (False, {"self-forcing"}, "tiny"),
    ],
)
def test_the_first_backbone_whose_weights_are_here_is_the_default_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, *, gpu: bool, there: set[str], chosen: str
) -> None:
    def missing(family: WanFamily, config: RunConfig, folder: Path) -> dict[str, Path]:
        return {} if config.name in there else {"generator": folder}

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(WanFamily, "missing", missing)
    assert default_backbone() == chosen
