"""The length of an encoder's keys, by its file alone."""

from __future__ import annotations

import pytest

from conftest import GOLDENS
from llrag_cli.errors import LlragError
from llrag_cli.memory import encoder
from llrag_cli.memory.encoder import embedding_size, encoder_from, load_encoder
from llrag_cli.models.embedded.family import FAMILY


def test_a_checkpoint_is_read_and_of_safetensors_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled, own = GOLDENS / "formats/ae.pt", FAMILY.bundled_encoder
    assert embedding_size(pickled) == load_encoder(pickled).config.latent_dim
    expected = load_encoder(own).config.latent_dim
    monkeypatch.setattr(encoder, "load_encoder", lambda path: pytest.fail("all of it was read"))
    assert embedding_size(own) == expected


def test_a_size_that_cannot_be_is_named() -> None:
    with pytest.raises(LlragError, match=r"`mine\.pt` has a bad `latent_dim` in its config: .* greater than 0"):
        encoder_from({}, {"latent_dim": 0}, source="mine.pt")
    with pytest.raises(LlragError, match=r"has a bad `hidden_dims\.1` in its config"):
        encoder_from({}, {"hidden_dims": [8, "x"]}, source="mine.pt")
