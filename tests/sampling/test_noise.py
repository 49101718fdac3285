from __future__ import annotations

import pytest
import torch

from llrag_cli.sampling.noise import AddressedNoise


def test_an_address_has_one_draw_whoever_asks() -> None:
    together = AddressedNoise(7, samples=(0, 1, 2)).draw(4, 1, (3, 2, 5))
    alone = AddressedNoise(7, samples=(1,)).draw(4, 1, (1, 2, 5))
    assert torch.equal(together[1:2], alone)


def test_every_part_of_the_address_matters() -> None:
    draws = [
        AddressedNoise(seed, samples=(sample,)).draw(block, step, (1, 64))
        for seed, sample, block, step in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    ]
    for i, first in enumerate(draws):
        for second in draws[i + 1 :]:
            assert not torch.equal(first, second)


def test_it_is_standard_normal() -> None:
    noise = AddressedNoise(0).draw(0, 0, (1, 20_000))
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_a_batch_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="a batch of 2"):
        AddressedNoise(0).draw(0, 0, (2, 4))


def test_a_seed_means_the_same_noise_in_every_version() -> None:
    drawn = AddressedNoise(7, samples=(0, 3)).draw(5, 2, (2, 3))
    assert drawn.flatten().tolist() == pytest.approx([0.1592, -0.5849, -0.0524, -0.0107, -0.2023, 1.1244], abs=1e-4)
