"""The small decoder against a plain reading of its layers, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.models.vae import stream_after_cut
from llrag_cli.models.wan.tiny_decoder import (
    CHANNELS,
    TinyWanDecoder,
    TinyWanNetwork,
    reach,
    tiny_decoder_bytes,
    tiny_network_from,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def released() -> State:
    """Random weights under the names and shapes of the released file, in its half precision."""
    torch.manual_seed(0)
    state = {name: value.half() for name, value in TinyWanNetwork().state_dict().items()}
    assert state["decoder.7.conv.weight"].shape == (256, 256, 1, 1)
    state["decoder.7.conv.weight"] = torch.randn(512, 256, 1, 1).half() / 16  # the first stage could make two frames
    state["decoder.22.weight"] *= 20  # so that pictures have a contrast
    state["decoder.22.bias"] += 0.5
    state["encoder.0.weight"] = torch.zeros(64, 3, 3, 3).half()
    return state


def decoder(state: Mapping[str, Tensor]) -> TinyWanDecoder:
    network = tiny_network_from(state, source="taew2_1.safetensors", dtype=torch.float32)

    def no_vae() -> TinyWanDecoder:
        raise AssertionError("the VAE is not needed to decode")

    return TinyWanDecoder(network, no_vae)


def read_plainly(state: State, latents: Tensor) -> Tensor:
    """Raw frames [F, 3, h, w] in 0 .. 1 of latents [T, C, h, w]: each layer over the whole video."""
    state = {name: value.float() for name, value in state.items()}

    def convolved(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, state[f"decoder.{name}.weight"], state.get(f"decoder.{name}.bias"), padding=1)

    x = convolved(3 * (latents / 3).tanh(), "1").relu()
    for first, ratio in ((3, 1), (9, 2), (15, 2)):
        for block in range(first, first + 3):
            both = torch.cat((x, torch.cat((torch.zeros_like(x[:1]), x[:-1]))), dim=1)
            inner = convolved(
                convolved(convolved(both, f"{block}.conv.0").relu(), f"{block}.conv.2").relu(), f"{block}.conv.4"
            )
            x = (inner + x).relu()
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        width = x.shape[1]
        x = F.conv2d(x, state[f"decoder.{first + 4}.conv.weight"][-ratio * width :]).reshape(-1, width, *x.shape[2:])
        x = convolved(x, str(first + 5))
    return convolved(x.relu(), "22").clamp(0, 1)


def test_frames_are_those_of_the_layers_read_plainly(released: State) -> None:
    latents = torch.randn(1, 4, CHANNELS, 3, 4, generator=torch.Generator().manual_seed(1))
    frames = decoder(released).stream().decode(latents)
    assert frames.shape == (1, 13, 3, 24, 32) and frames.std() > 0.05
    expected = 2 * read_plainly(released, latents[0])[3:] - 1  # three frames precede the video
    torch.testing.assert_close(frames[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("parts", [(3, 3, 3), (1, 1, 4, 3), (9,)])
def test_a_stream_has_no_seams(released: State, parts: tuple[int, ...]) -> None:
    latents = torch.randn(2, 9, CHANNELS, 3, 4, generator=torch.Generator().manual_seed(2))
    whole = decoder(released).stream().decode(latents)
    stream = decoder(released).stream()
    streamed = torch.cat([stream.decode(part) for part in latents.split(parts, dim=1)], dim=1)
    assert whole.shape == (2, 33, 3, 24, 32) and torch.equal(streamed, whole)
    alone = decoder(released).stream().decode(latents[1:])
    torch.testing.assert_close(alone, whole[1:], atol=1e-5, rtol=1e-5)


def test_a_frame_depends_on_as_many_latents_as_it_says(released: State) -> None:
    latents = torch.randn(1, reach() + 3, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(3))
    small = decoder(released)
    whole = small.stream().decode(latents)
    late = small.stream()
    late.decode(latents[:, 2:-1])  # as many as it reaches back
    assert torch.equal(late.decode(latents[:, -1:]), whole[:, -4:])
    changed = latents.clone()
    changed[:, 0] += 1
    moved = (small.stream().decode(changed) - whole).abs().amax(dim=(0, 2, 3, 4)) > 0
    last = (int(moved.nonzero().max()) + 3) // 4  # the latent frame of the last frame that changed
    assert last <= reach()


def test_after_a_cut_every_latent_gives_four_frames(released: State) -> None:
    latents = torch.randn(1, 3, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(4))
    assert stream_after_cut(decoder(released), latents).decode(latents).shape[1] == 12


def test_other_files_are_refused(released: State) -> None:
    for name, damage, message in (
        ("decoder.3.conv.0.weight", None, "lacks `decoder.3.conv.0.weight`"),
        ("decoder.30.weight", torch.zeros(3), "has unknown `decoder.30.weight`"),
        ("decoder.1.weight", torch.zeros(256, 48, 3, 3), "has `decoder.1.weight` of shape"),  # of Wan2.2
        ("decoder.13.conv.weight", torch.zeros(64, 128, 1, 1), "has `decoder.13.conv.weight` of shape"),
    ):
        state = {key: value for key, value in {**released, name: damage}.items() if value is not None}
        with pytest.raises(LlragError, match=message.replace("[", r"\[")):
            tiny_network_from(state, source="x.safetensors", dtype=torch.float32)


def test_bytes_for_a_plan() -> None:
    weights, decoding = tiny_decoder_bytes(60, 104, 2)
    assert weights == 2 * sum(parameter.numel() for parameter in TinyWanNetwork().parameters())
    frames = 4 * 64 * 480 * 832 * 2  # of the widest layer at full size
    assert 3 * frames < decoding < 8 * frames
