"""Decoders hold weights only: a stream equals the whole, and streams of one decoder do not disturb each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from llrag_cli.config import LATENT_SPACES
from llrag_cli.models.embedded.vae import TinyDecoder, TinyVAE, TinyVAEConfig
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.vae import WanDecoder


def tiny_decoder() -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(TinyVAE(TinyVAEConfig(latent_channels=4, sharp=8, fine=8, coarse=16)))


def wan_decoder() -> WanDecoder:
    torch.manual_seed(0)
    return WanDecoder(AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4))


both = pytest.mark.parametrize("make", [tiny_decoder, wan_decoder])
Make = Callable[[], Decoder]


def latents_of(seed: int, *, frames: int = 4, side: int = 2) -> Tensor:
    return torch.randn(1, frames, 4, side, side, generator=torch.Generator().manual_seed(seed))


def decoded(decoder: Decoder, latents: Tensor, sizes: list[int]) -> Tensor:
    stream = decoder.stream()
    return torch.cat([stream.decode(part) for part in latents.split(sizes, dim=1)], dim=1)


@both
@pytest.mark.parametrize("sizes", [[1] * 9, [3, 3, 3], [2, 4, 3]])
def test_a_stream_equals_the_whole(make: Make, sizes: list[int]) -> None:
    decoder, latents = make(), latents_of(0, frames=9, side=4)
    whole = decoder.stream().decode(latents)
    side = 4 * decoder.spatial_ratio
    assert whole.shape == (1, 4 * (9 - 1) + 1, 3, side, side)
    torch.testing.assert_close(decoded(decoder, latents, sizes), whole, atol=1e-5, rtol=0)


def video_of(seed: int, *, frames: int, side: int = 16) -> Tensor:
    return torch.rand(2, frames, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encoding_in_groups_equals_diffusers_at_once(frames: int) -> None:
    decoder, video = wan_decoder(), video_of(0, frames=frames)
    with torch.no_grad():
        whole = decoder.vae.encode(video.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    assert torch.equal(decoder.encode(video), whole)


@pytest.mark.parametrize("frames", [1, 5, 29, 33, 61, 65, 93])
def test_the_embedded_vae_encodes_in_parts_what_it_encodes_at_once(frames: int) -> None:
    decoder, video = tiny_decoder(), video_of(0, frames=frames, side=32)
    with torch.no_grad():
        whole = decoder.vae.encode(video)
    latents = decoder.encode(video)
    assert latents.shape == whole.shape == (2, 1 + (frames - 1) // 4, 4, 2, 2)
    torch.testing.assert_close(latents, whole, atol=1e-5, rtol=0)


@both
@pytest.mark.parametrize("frames", [4, 34, 40])
def test_an_incomplete_latent_frame_is_not_encoded(make: Make, frames: int) -> None:
    with pytest.raises(ValueError, match=rf"a video of {frames} frames is not 4\(n-1\)\+1 long"):
        make().encode(video_of(0, frames=frames))


@both
def test_streams_in_turns_give_what_each_gives_alone(make: Make) -> None:
    decoder, parts = make(), [latents_of(seed).split(2, dim=1) for seed in (1, 2)]
    alone = [decoded(decoder, latents_of(seed), [2, 2]) for seed in (1, 2)]
    streams = [decoder.stream(), decoder.stream()]
    frames: list[list[Tensor]] = [[], []]
    for turn in range(2):
        for number, stream in enumerate(streams):
            frames[number].append(stream.decode(parts[number][turn]))
            decoder.encode(torch.zeros(1, 5, 3, 32, 32))
    for own, expected in zip(frames, alone, strict=True):
        assert torch.equal(torch.cat(own, dim=1), expected)


@both
def test_streams_on_threads_give_what_each_gives_alone(make: Make) -> None:
    decoder = make()
    frames = torch.randn(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)

    def work(seed: int) -> tuple[Tensor, Tensor]:
        return decoded(decoder, latents_of(seed), [1] * 4), decoder.encode(frames * (seed / 3))

    alone = [work(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(work, range(3)))
    for (video, latents), (expected_video, expected_latents) in zip(together, alone, strict=True):
        assert torch.equal(video, expected_video) and torch.equal(latents, expected_latents)


@both
def test_decoding_leaves_the_weights_alone(make: Make) -> None:
    decoder = make()
    vae = decoder.vae  # type: ignore[attr-defined]
    before = {name: value for name, value in vars(vae).items() if not name.startswith("_modules")}
    decoder.stream().decode(latents_of(0))
    assert {name: value for name, value in vars(vae).items() if not name.startswith("_modules")} == before


@both
def test_ratios_are_those_of_the_family(make: Make) -> None:
    decoder = make()
    space = LATENT_SPACES["tiny" if isinstance(decoder, TinyDecoder) else "wan"]
    assert (decoder.spatial_ratio, decoder.temporal_ratio) == (space.spatial_ratio, space.temporal_ratio)
    latents = decoder.encode(torch.zeros(1, space.video_frames(3), 3, 16, 16))
    assert latents.shape[1] == 3 == space.latent_frames(space.video_frames(3))
    assert decoder.stream().decode(latents).shape == (1, 9, 3, 16, 16)


def test_a_stream_that_starts_within_the_reach_gives_the_bits_of_the_whole() -> None:
    """As when a run is resumed: the stream has seen as many latents before as the decoder reaches back, and no more."""
    decoder = wan_decoder()
    assert decoder.reach == 38
    latents = latents_of(0, frames=43, side=1)
    whole = decoded(decoder, latents, [1] * 43)
    assert torch.equal(decoded(decoder, latents, [3] * 14 + [1]), whole)

    def after(seen: int) -> Tensor:
        stream = decoder.stream()
        stream.decode(latents[:, 42 - seen : 42])
        return stream.decode(latents[:, 42:])

    assert torch.equal(after(decoder.reach), whole[:, -4:])
    assert not torch.equal(after(decoder.reach - 1), whole[:, -4:])
