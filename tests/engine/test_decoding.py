"""The memory layout of the VAE's decoder: chosen by trial on a GPU, recorded, and used again by a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Llrag
from fakecuda import FakeGPU
from llrag_cli.cli import doctor
from llrag_cli.config import ModelShape
from llrag_cli.engine import decoding, trials
from llrag_cli.engine.decoding import MEMORY_LAYOUTS, DecoderShape, decoding_at
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.trials import Compute, Trial, machine_of
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.models.layouts import Layout
from llrag_cli.models.vae import Decoder
from llrag_cli.models.wan.vae import WanDecoder
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import RunFolder

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SMALL = ("backbone.height=4", "backbone.width=6", "memory.keys=average")
SHAPE = DecoderShape(height=4, width=6, channels=16, base_dim=4, compiled=False, dtype="float32")


def loaded(*settings: str, how: Execution | None = None, device: torch.device = GPU) -> Decoder:
    config = load_config("self-forcing", memory="nearest", settings=(*SMALL, *settings))
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "text_dim": 8}
    shape = ModelShape(**sizes, vae_base_dim=4)
    how = how or Execution(attention="native")
    return random_pipeline(config, shape, device=device, dtype=torch.float32, how=how).decoder


class Times:
    """Trials with made-up times. What is decoded in them is real on a CPU alone, and may be spoilt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, channels_last: float) -> None:
        self.times = {"contiguous": 10.0, "channels_last_3d": channels_last}
        self.spoil: Callable[[Layout, Tensor], Tensor] = lambda _, frames: frames
        self.made: list[DecoderShape] = []
        monkeypatch.setattr(decoding, "decoding_at", self.decoding)
        monkeypatch.setattr(trials, "milliseconds", self.clock)

    def decoding(self, shape: DecoderShape, device: torch.device, decoder: WanDecoder) -> Compute[Layout]:
        self.made.append(shape)

        def quick(layout: Layout) -> Tensor:
            decoder.set_layout(layout)
            return torch.ones(2, device=device)

        compute = decoding_at(shape, device, decoder) if device == CPU else quick
        return lambda layout: self.spoil(layout, compute(layout))

    def clock(self, call: Callable[[], object]) -> float:
        assert isinstance(call, partial)
        return self.times[call.args[0]]


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with FakeGPU() as fake:
        yield fake


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    return Times(monkeypatch, channels_last=8.0)


def layout_of_weights(decoder: Decoder) -> Layout:
    assert isinstance(decoder, WanDecoder)
    last = decoder.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    return "channels_last_3d" if last else "contiguous"


def test_the_trial_is_made_once_for_a_machine_and_shape(gpu: FakeGPU, times: Times) -> None:
    for _ in range(2):
        decoder = loaded()
        assert decoder.layout == layout_of_weights(decoder) == "channels_last_3d"
    assert times.made == [SHAPE]
    loaded("backbone.height=6")
    loaded(how=Execution(attention="native", fast=True))
    assert [shape.height for shape in times.made] == [4, 6, 4]


def test_the_full_decoder_of_a_compiled_run_is_compiled_and_tried_so(gpu: FakeGPU, times: Times) -> None:
    how = Execution(attention="native", compile=True)
    assert [loaded(*settings, how=how).is_compiled for settings in ((), ("video.decoder=tiny",))] == [True, False]
    assert not loaded().is_compiled
    assert [shape.compiled for shape in times.made] == [True, False]


def test_what_is_not_clearly_faster_is_not_chosen(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, channels_last=9.8)
    decoder = loaded()
    assert decoder.layout == layout_of_weights(decoder) == "contiguous" and len(times.made) == 1


def test_there_is_no_trial_where_nothing_is_to_be_chosen(gpu: FakeGPU, times: Times) -> None:
    assert loaded(device=CPU).layout == "contiguous"
    assert loaded("video.decoder=tiny").layout == "contiguous"
    decoder = loaded(how=Execution(attention="native", decoder_layout="channels_last_3d"))
    assert decoder.layout == layout_of_weights(decoder) == "channels_last_3d"
    assert times.made == []


def on_this_machine(times: Times, *, repeatable: bool = True) -> Trial:
    """A trial whose frames are real."""
    decoder = loaded(device=CPU)
    assert isinstance(decoder, WanDecoder)
    compute = times.decoding(SHAPE, CPU, decoder)
    return MEMORY_LAYOUTS.compare(SHAPE, compute, machine={}, repeatable=repeatable, clock=times.clock)


def test_frames_of_both_layouts_agree(times: Times) -> None:
    found = on_this_machine(times)
    assert (found.chosen, found.refused) == ("channels_last_3d", {})


def test_a_trial_decodes_the_first_frame_and_a_group_that_follows() -> None:
    decoder = loaded(device=CPU)
    assert isinstance(decoder, WanDecoder)
    assert decoding_at(SHAPE, CPU, decoder)("contiguous").shape[1] == 1 + 4


def test_a_trial_decodes_in_the_layout_that_is_asked() -> None:
    decoder = loaded(device=CPU)
    assert isinstance(decoder, WanDecoder)
    decode, asked = decoding_at(SHAPE, CPU, decoder), ("channels_last_3d", "contiguous", "contiguous")
    for layout in asked:
        decode(layout)
        assert decoder.layout == layout_of_weights(decoder) == layout


@pytest.mark.parametrize(("dtype", "error"), [("float32", 5e-3), ("bfloat16", 5e-2), ("float16", 1e-2)])
def test_frames_may_differ_by_the_rounding_of_many_layers(dtype: str, error: float) -> None:
    shape, exact = replace(SHAPE, dtype=dtype), torch.ones(64)

    def refused(difference: float) -> bool:
        frames = {"contiguous": exact, "channels_last_3d": exact + difference}
        found = MEMORY_LAYOUTS.compare(shape, frames.__getitem__, machine={}, repeatable=True, clock=lambda _: 1.0)
        return "channels_last_3d" in found.refused

    assert (refused(0.9 * error), refused(1.1 * error)) == (False, True)


def inaccurate(layout: Layout, frames: Tensor) -> Tensor:
    return frames + 0.05 if layout == "channels_last_3d" else frames


def random(layout: Layout, frames: Tensor) -> Tensor:
    return frames + 1e-5 * torch.rand_like(frames) if layout == "channels_last_3d" else frames


def failing(layout: Layout, frames: Tensor) -> Tensor:
    if layout == "channels_last_3d":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return frames


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (inaccurate, "its result differs from that of `contiguous` by"),
        (random, "it does not return the same bits twice"),
        (failing, "memory ran out"),
    ],
)
def test_a_layout_that_is_wrong_is_not_chosen(
    times: Times, spoil: Callable[[Layout, Tensor], Tensor], reason: str
) -> None:
    times.spoil = spoil
    found = on_this_machine(times)
    assert found.chosen == "contiguous" and found.refused["channels_last_3d"].startswith(reason)
    assert found.milliseconds == {"contiguous": 10.0}


def test_without_determinism_other_bits_are_allowed(times: Times) -> None:
    times.spoil = random
    assert on_this_machine(times, repeatable=False).chosen == "channels_last_3d"


def test_without_memory_for_a_trial_nothing_is_chosen_or_kept(gpu: FakeGPU, times: Times) -> None:
    def no_memory(layout: Layout, frames: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    times.spoil = no_memory
    for _ in range(2):
        decoder = loaded()
        assert decoder.layout == layout_of_weights(decoder) == "contiguous"
    assert len(times.made) == 2


def test_doctor_shows_what_was_found(gpu: FakeGPU, times: Times) -> None:
    assert doctor._decoder("cpu") == "contiguous, without a trial, on a CPU"
    assert doctor._decoder("cuda:0") == "chosen by trial when a backbone is loaded for the first time"
    loaded()
    shown = doctor._decoder("cuda:0")
    assert shown == "channels_last_3d for latent frames of 4x6 (contiguous 10 ms, channels_last_3d 8 ms)"


def test_a_trial_on_a_gpu_decodes_in_both_layouts(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the fake one both take as long."""
    monkeypatch.setattr(trials, "ROUNDS", 1)
    monkeypatch.setattr(trials, "CALLS", 1)
    before = gpu.live
    decoder = loaded()
    assert decoder.layout == layout_of_weights(decoder) == "contiguous"
    (found,) = MEMORY_LAYOUTS.kept(machine_of(GPU))
    assert found.milliseconds == {"contiguous": 1.0, "channels_last_3d": 1.0} and found.refused == {}
    del decoder
    assert gpu.live - before < 100_000  # nothing of the trial is kept


def test_the_layout_does_not_change_the_peak(gpu: FakeGPU) -> None:
    """So the plan holds for both: what is decoded is as large in either, at the width of the released VAE."""
    peaks = []
    for layout in MEMORY_LAYOUTS.candidates:
        shape = ModelShape(num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32, text_dim=8)
        config = load_config("self-forcing", memory="none")
        how = Execution(attention="native", decoder_layout=layout)
        decoder = random_pipeline(config, shape, device=GPU, dtype=torch.bfloat16, how=how).decoder
        stream, latent, before = decoder.stream(), torch.empty(1, 1, 16, 60, 104, device="cuda"), gpu.live
        for _ in range(3):
            gpu.forget_peak()
            stream.decode(latent)
        peaks.append(gpu.peak - before)
        del decoder, stream
    assert peaks[1] == pytest.approx(peaks[0], rel=0.01)


# --- in a run ---------------------------------------------------------------------------------------


def test_a_run_says_so_if_it_continues_in_another_layout(llrag: Llrag, tmp_path: Path) -> None:
    """The embedded model has one layout; ``test_real_weights.py`` resumes in that which is recorded."""
    few = ("--seconds", "2", "--set", "sampler.steps=[1000]", "--device", "cpu")
    made = llrag("generate", "a red circle", *few, "--out", "run")
    assert made.returncode == 0, made.stderr
    file = tmp_path / "run/run.json"
    record = json.loads(file.read_text())
    assert (record["decoder_layout"], record["decoder_compiled"]) == ("contiguous", False)
    old = {name: value for name, value in record.items() if not name.startswith("decoder_")}
    file.write_text(json.dumps(old))  # as it was written before there was a choice
    assert RunFolder(tmp_path / "run").read_record().decoder_layout == "contiguous"

    file.write_text(json.dumps(record | {"decoder_layout": "channels_last_3d", "decoder_compiled": True}))
    done = llrag("extend", "run", "--seconds", "2")
    said = " ".join(done.stderr.split())
    assert done.returncode == 0, done.stderr
    assert "`run` was begun with the decoder compiled, and continues with it not compiled: it may differ" in said
    assert "with the decoder channels_last_3d in memory, and continues with it contiguous: it may differ" in said
    record = json.loads(file.read_text())
    assert (record["decoder_layout"], record["decoder_compiled"]) == ("contiguous", False)

    file.write_text(json.dumps(record | {"decoder_compiled": True}))
    done = llrag("decode", "run")
    assert done.returncode == 0 and "the decoder ran compiled before, and now does not" in done.stderr
    assert json.loads(file.read_text()) == record

    file.write_text(json.dumps(record | {"decoder_layout": "sideways"}))
    assert "is damaged" in llrag("extend", "run", "--seconds", "2").stderr
