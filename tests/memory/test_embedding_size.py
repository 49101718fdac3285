"""The length of an encoder's keys, by its file alone."""

from __future__ import annotations

import pytest

from conftest import GOLDENS
from llrag_cli.memory import encoder
from llrag_cli.memory.encoder import embedding_size, load_encoder
from llrag_cli.models.embedded.family import FAMILY


def test_a_checkpoint_is_read_and_of_safetensors_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled, own = GOLDENS / "formats/ae.pt", FAMILY.bundled_encoder
    assert embedding_size(pickled) == load_encoder(pickled).config.latent_dim
    expected = load_encoder(own).config.latent_dim
    monkeypatch.setattr(encoder, "load_encoder", lambda path: pytest.fail("all of it was read"))
    assert embedding_size(own) == expected
