"""The VAE's decoder with its norms compiled: the same frames from one graph, on the thread that decodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from torch import Tensor
from torch._dynamo.utils import counters

from llrag_cli.models.wan import fused_norms
from llrag_cli.models.wan.fused_norms import normalise_and_activate
from llrag_cli.models.wan.vae import WanDecoder, decoder_reach
from llrag_cli.runs.sink import VideoSink


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def decoder() -> WanDecoder:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    for name, gamma in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(gamma, 1, 0.2)
    return WanDecoder(vae)


@pytest.fixture
def compiled() -> WanDecoder:
    """By a compiler that is quick and exact."""
    made = decoder()
    made.compile(backend="aot_eager")
    return made


def latents_of(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


LATENTS = latents_of(1, 5, 4, 3, 5)  # no size of a picture is a number of channels, which would be taken as the same


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_frames_are_the_same_from_one_graph(compiled: WanDecoder) -> None:
    plain, stream = decoder().stream(), compiled.stream()
    for index in range(5):
        frames = stream.decode(LATENTS[:, index : index + 1])
        torch.testing.assert_close(frames, plain.decode(LATENTS[:, index : index + 1]), atol=1e-5, rtol=0)
        assert graphs() == 1
    for size in [(5, 3), (6, 7), (2, 9)]:  # other sizes need no other graph, nor do several videos at once
        latents = latents_of(2, 3, 4, *size)
        expected = decoder().stream().decode(latents)
        torch.testing.assert_close(compiled.stream().decode(latents), expected, atol=1e-5, rtol=0)
    assert graphs() <= 2  # what is a dimension of one is seen in another way
    assert not counters["graph_break"]


@torch.no_grad()
def test_each_layout_and_dtype_needs_one_graph_and_layouts_are_kept(compiled: WanDecoder) -> None:
    compiled.stream().decode(LATENTS)
    norm = WanRMS_norm(8, images=False)
    pair = torch.compile(normalise_and_activate, fullgraph=True, backend="aot_eager")
    for expected, dtype in enumerate((torch.float32, torch.bfloat16), start=1):
        for times in (1, 3):
            x = latents_of(1, 8, times, 5, 7).to(dtype)
            for layout in (torch.contiguous_format, torch.channels_last_3d):
                given = x.contiguous(memory_format=layout)
                made = fused_norms._apply(pair, norm.to(dtype), given)
                assert made.stride() == given.stride() and made.dtype == dtype
                exact = torch.nn.functional.silu(norm(given).float())
                torch.testing.assert_close(made.float(), exact, atol=1e-6 if expected == 1 else 0.02, rtol=0.01)
        assert graphs() == 2 * expected
    assert not counters["graph_break"]


def test_of_zeros_it_is_zero() -> None:
    zeros = torch.zeros(1, 4, 6)
    assert torch.equal(normalise_and_activate(zeros, torch.ones(4, 1)), zeros)


def test_the_thread_that_decodes_compiles_once_and_gives_the_same_bits(compiled: WanDecoder) -> None:
    """Its first call is the first of all; another thread and the main one find the graph."""

    class Kept:
        def __init__(self) -> None:
            self.frames: list[Tensor] = []
            self.threads: set[str] = set()

        def write(self, frames: Tensor) -> None:
            self.frames.append(frames)
            self.threads.add(threading.current_thread().name)

        def close(self) -> None: ...

    made = []
    for _ in range(2):
        kept = Kept()
        with VideoSink(compiled.stream(), kept) as sink:
            for latents in LATENTS.split(2, dim=1):
                sink.put(latents)
        assert kept.threads == {"video"}
        made.append(torch.cat(kept.frames))
        assert graphs() == 1
    made.append(compiled.stream().decode(LATENTS)[0])
    assert graphs() == 1
    assert all(torch.equal(frames, made[0]) for frames in made)


def test_weights_and_what_is_planned_from_them_stay(compiled: WanDecoder) -> None:
    plain = decoder()
    before, after = plain.vae.state_dict(), compiled.vae.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    compiled.vae.load_state_dict(before, strict=True)
    assert (compiled.reach, decoder_reach(compiled.vae)) == (plain.reach, plain.reach)
    video = torch.rand(1, 5, 3, 16, 16)
    assert torch.equal(compiled.encode(video), plain.encode(video))  # the encoder half is as it was
    assert (compiled.is_compiled, plain.is_compiled) == (True, False)


def test_the_layout_changes_no_number(compiled: WanDecoder) -> None:
    plain = decoder()
    before = {name: weight.clone() for name, weight in compiled.vae.state_dict().items()}
    compiled.set_layout("channels_last_3d")
    weight = compiled.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()
    resample = compiled.vae.decoder.up_blocks[0].upsamplers[0].resample[1].weight
    assert resample.is_contiguous(memory_format=torch.channels_last)
    expected = plain.stream().decode(LATENTS)
    torch.testing.assert_close(compiled.stream().decode(LATENTS), expected, atol=1e-5, rtol=0)
    assert compiled.layout == "channels_last_3d" and compiled.vae.encoder.conv_in.weight.is_contiguous()
    compiled.set_layout("contiguous")
    after = compiled.vae.state_dict()
    assert all(each.is_contiguous() and torch.equal(each, before[name]) for name, each in after.items())
