"""``llrag bench speed``: what is counted and what is not; how fast it is depends on the machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Llrag
from llrag_cli.config import ModelShape
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.rollout import denoise
from llrag_cli.errors import UsageError
from llrag_cli.evaluation import speed
from llrag_cli.evaluation.speed import (
    PARTS,
    in_turns,
    load,
    measure,
    plans_of,
    ratio,
    seconds_of,
    steady_after,
    summary,
    together,
)
from llrag_cli.models.vae import DecoderStream
from llrag_cli.models.wan.transformer import WanSession
from llrag_cli.presets import load_config, load_shape
from llrag_cli.runs.video import VideoWriter, read_video

SMALL = """
num_layers: 2
num_attention_heads: 2
attention_head_dim: 16
ffn_dim: 48
text_dim: 8
freq_dim: 16
vae_base_dim: 4
"""
FEW = ["--set", "backbone.height=4", "--set", "backbone.width=6", "--set", "sampler.steps=[1000, 500]"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def test_any_shape_is_measured_without_weights(llrag: Llrag, small: Path) -> None:
    done = llrag("bench", "speed", "--config", "small.yaml", *FEW, "--blocks", "3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["schema"], told["backbone"], told["weights"]) == (2, "self-forcing", "random")
    assert (told["width"], told["height"], told["fps"]) == (48, 32, 16)
    assert (told["blocks"], told["warmup"], told["steps"]) == (
        3,
        9,
        2,
    )  # until frame 24 the memory retrieves fewer than 6
    assert 2e4 < told["parameters"] < 1e5
    assert told["peak_memory_bytes"] > 1e8
    assert list(told["memories"]) == ["none", "nearest"] and told["baseline"] == "none"
    for memory in told["memories"].values():
        assert set(memory["shares"]) == set(PARTS)
        assert sum(memory["shares"].values()) == pytest.approx(1)
        assert memory["first_frames_seconds"] > 0
        for rates in (memory["generation"], memory["end_to_end"]):
            assert rates["pixel_fps"] == pytest.approx(4 * rates["latent_fps"])
            assert rates["block_seconds"] > 0
    assert told["memories"]["nearest"]["shares"]["retrieval"] > 0
    assert list(told["ratios"]) == ["nearest"]
    for found in told["ratios"]["nearest"].values():
        assert found["quarter"] <= found["median"] <= found["three_quarters"]
        assert found["low"] <= found["mean"] <= found["high"]
    assert not list(Path.cwd().glob("*.mp4"))


def test_the_embedded_model_is_measured_with_its_weights(llrag: Llrag) -> None:
    done = llrag(
        "bench", "speed", "--blocks", "1", "--warmup", "1", "--set", "sampler.steps=[1000]", "--dtype", "float32"
    )
    assert done.returncode == 0, done.stderr
    assert "tiny, loaded weights, " in done.stdout and ", 128x128, float32 on cpu" in done.stdout
    assert "1 blocks of 3 latent frames after 1" in done.stdout
    assert "nearest / none: " in done.stdout and "share: clean pass" in done.stdout
    assert "warning: block times are stable only after 7 blocks; the warm-up has 1" in done.stderr


def test_memories_are_those_of_bench(llrag: Llrag, small: Path) -> None:
    options = ("--memory", "random", "--memory", "none", "--blocks", "1", "--warmup", "0", "--json")
    told = json.loads(llrag("bench", "speed", "--config", str(small), *FEW, *options).stdout)
    assert told["baseline"] == "random" and list(told["ratios"]) == ["none"]
    alone = json.loads(llrag("bench", "speed", "--config", str(small), *FEW, *options[2:]).stdout)
    assert alone["ratios"] == {} and list(alone["memories"]) == ["none"]


class AtOnce:
    """A sink without a thread of its own, so that a made-up clock stands still while it writes."""

    def __init__(self, decoder: DecoderStream, writer: VideoWriter) -> None:
        self.decoder, self.writer = decoder, writer

    def __enter__(self) -> AtOnce:
        return self

    def put(self, latents: Tensor) -> None:
        self.writer.write(self.decoder.decode(latents)[0])

    def __exit__(self, *_: object) -> None:
        self.writer.close()


def test_warmup_is_left_out(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the first two blocks take 10 s, the others 1 s (2 s with retrieval), and nothing else."""
    now = [0.0]

    def denoised(session: WanSession, *arguments: Any, block: int, **options: Any) -> Tensor:
        retrieves = session.cache.archive is not None or session.cache.window is None
        now[0] += 10.0 if block < 2 else 2.0 if retrieves else 1.0
        return denoise(session, *arguments, block=block, **options)

    monkeypatch.setattr("llrag_cli.engine.rollout.denoise", denoised)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(speed, "VideoSink", AtOnce)
    settings = ("backbone.height=4", "backbone.width=6", "sampler.steps=[1000]", "memory.keys=average")
    configs = {
        "none": load_config("self-forcing", memory="none", settings=settings[:3]),
        "nearest": load_config("self-forcing", memory="nearest", settings=settings),
    }
    pipelines = load(configs, shape=load_shape(small), device="cpu", dtype="auto", how=Execution())
    blocks: list[int] = []
    found = measure(pipelines, blocks=2, warmup=2, folder=tmp_path, on_block=lambda: blocks.append(1))
    assert len(blocks) == 2 * (2 + 2 + 2)
    for measured, steady in zip(found.values(), (1.0, 2.0), strict=True):
        assert measured.first_frames == 10
        assert measured.streamed == steady
        assert measured.generating == measured.whole == measured.parts["denoise"] == [steady, steady]
        assert measured.shares == {part: float(part == "denoise") for part in PARTS}
    told = summary(configs["none"], found)
    assert told["memories"]["nearest"]["generation"] == {"latent_fps": 1.5, "pixel_fps": 6.0, "block_seconds": 2.0}
    assert set(told["ratios"]["nearest"]["with_decoding"].values()) == {2.0}
    assert len(read_video(tmp_path / "none.mp4")) == 45  # four blocks of three latent frames


def test_memories_share_their_weights_and_nothing_else(small: Path) -> None:
    settings = ("backbone.height=4", "backbone.width=6", "sampler.steps=[1000, 500]")
    configs = {name: load_config("self-forcing", memory=name, settings=settings) for name in ("none", "nearest")}
    pipelines = load(configs, shape=load_shape(small), device="cpu", dtype="auto", how=Execution())
    one, other = (pipeline.backbone.transformer for pipeline in pipelines.values())
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine is theirs

    def video(name: str) -> Any:
        return pipelines[name].start("a", seconds=5)

    alone = {name: torch.cat([block.latents for block in video(name)], dim=1) for name in configs}
    turns = list(zip(video("none"), video("nearest"), strict=True))
    for side, name in enumerate(configs):
        assert torch.equal(torch.cat([pair[side].latents for pair in turns], dim=1), alone[name])
    assert not torch.equal(alone["none"], alone["nearest"])


def test_memory_is_that_of_each_video_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that holds 100 of weights and an encoder of 12; videos hold 30 and 50, and 5 more at their peaks."""
    held, highest = [112], [112]
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: highest[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: highest.__setitem__(0, held[0]))
    gpu, encoder = SimpleNamespace(device=torch.device("cuda")), torch.nn.Linear(3, 1, bias=False)
    pipelines: Any = {
        "none": SimpleNamespace(backbone=gpu, encode_key=print),
        "nearest": SimpleNamespace(backbone=gpu, encode_key=encoder),
    }
    meter = speed.Meter(pipelines)
    for name, size in (("none", 30), ("nearest", 50)):
        with meter.of(name):
            held[0] += size
            highest[0] = held[0] + 5
    assert meter.peaks == {"none": 100 + 30 + 5, "nearest": 112 + 50 + 5}
    assert meter.together == 112 + 30 + 50 + 5
    highest[0] = 7
    assert meter.together == 112 + 30 + 5  # of what was taken when the second video began, and of what is now


def test_turns_alternate() -> None:
    called: list[str] = []

    def side(name: str) -> int:
        called.append(name)
        return len(called)

    found = in_turns([lambda: side("a"), lambda: side("b")], 3)
    assert "".join(called) == "abbaab"
    assert found == [[1, 4, 5], [2, 3, 6]]


def test_ratios_are_of_pairs() -> None:
    found = ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])  # a machine that slows down slows both
    assert set(found.values()) == {2.0}
    spread = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (spread["quarter"], spread["median"], spread["three_quarters"], spread["mean"]) == (2, 3, 4, 3)
    assert 1 <= spread["low"] < 3 < spread["high"] <= 5


@pytest.mark.parametrize(("memory", "blocks"), [("none", 5), ("nearest", 9)])
def test_a_block_is_steady_once_the_window_is_full_and_all_is_retrieved(memory: str, blocks: int) -> None:
    config = load_config("self-forcing", memory=memory)
    assert steady_after(config) == blocks
    assert config.latent_frames(seconds_of(config, blocks=4, warmup=9)) == 3 * (9 + 2 * 4)


def test_the_shape_of_a_model_is_read_from_its_own_configuration(tmp_path: Path) -> None:
    own = {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.33.0",
        **{"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824},
        **{"in_channels": 16, "out_channels": 16, "image_dim": None, "patch_size": [1, 2, 2], "eps": 1e-6},
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(own))
    shape = load_shape(file)
    assert shape == ModelShape(num_layers=40, num_attention_heads=40, ffn_dim=13824)
    for changed, said in (
        ({"in_channels": 36}, "36 channels go in and 16 come out"),
        ({"_class_name": "UNet2DModel"}, "a `UNet2DModel` is not supported"),
    ):
        file.write_text(json.dumps(own | changed))
        with pytest.raises(UsageError, match=said):
            load_shape(file)


def test_weights_are_counted_once_and_memories_each() -> None:
    configs = {memory: load_config("self-forcing", memory=memory) for memory in ("none", "nearest")}
    plans = plans_of(configs, seconds=30, shape=ModelShape(), device=torch.device("cpu"), dtype=torch.bfloat16)
    budget = together([*plans.values()])
    parts = {part.name: part.bytes for part in budget.parts}
    assert parts["weights"] == pytest.approx(2.84e9, rel=0.02)
    assert sum(name.startswith("weights") for name in parts) == sum(name.startswith("VAE") for name in parts) == 1
    assert sum(name.startswith("K/V") for name in parts) == 4
    assert parts["archive of K/V, nearest"] == pytest.approx(0.2875e9 * 123, rel=0.01)


def test_what_does_not_fit_is_refused_before_it_is_made(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.planning.free_memory", lambda device: 10**9)
    monkeypatch.setattr(speed, "random_pipeline", None)
    done = llrag("bench", "speed", "--backbone", "self-forcing", "--random-weights", "--device", "cpu")
    assert done.returncode == 1
    assert "error: this run needs " in done.stderr and "has 1 GB free; the most goes to " in done.stderr
    assert "hint: one `--memory`" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backbone", "tinny"], "unknown preset `tinny`"),
        (["--memory", "nearst"], "unknown memory strategy `nearst`"),
        (["--blocks", "0"], "nothing to time"),
        (["--warmup", "-1"], "nothing to time"),
        (["--backbone", "tiny", "--random-weights"], "the embedded model has one size and comes with its weights"),
        (["--config", "no.yaml"], "no such file: `no.yaml`"),
        (["--config", "bad.yaml"], "`bad.yaml`, line 2: unknown key `num_layer`"),
        (["--config", "none.yaml"], "`none.yaml`, line 1: `num_layers`: input should be greater than 0, not `0`"),
        (["--config", "list.yaml"], "`list.yaml` is not a mapping of keys to values"),
        (
            ["--config", "small.yaml", "--set", "backbone.height=5"],
            "latent frames of 5x104 cannot be cut into tokens of 2x2",
        ),
        (["--config", "small.yaml", "--device", "cuda:77"], "unknown device `cuda:77`"),
        (["--dtype", "float12"], "unknown dtype `float12`"),
        (["--attention", "flush"], "unknown attention backend `flush`"),
        (["--set", "memory.sinks=2"], "unknown setting `memory.sinks`"),
    ],
)
def test_bad_requests_get_a_sentence(llrag: Llrag, small: Path, arguments: list[str], said: str) -> None:
    (small.parent / "bad.yaml").write_text("num_attention_heads: 2\nnum_layer: 3\n")
    (small.parent / "none.yaml").write_text("num_layers: 0\n")
    (small.parent / "list.yaml").write_text("- 1\n")
    done = llrag("bench", "speed", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "hint: " in done.stderr


def test_missing_weights_are_named_with_the_way_to_do_without(llrag: Llrag) -> None:
    done = llrag("bench", "speed", "--backbone", "self-forcing")
    assert done.returncode == 1
    assert "the weights of `self-forcing` are incomplete" in done.stderr
    assert "hint: `--random-weights` measures the same sizes without them" in done.stderr
