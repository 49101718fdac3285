"""The attention backend that is chosen by trial, kept, recorded, and used again by a resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from conftest import Llrag
from fakecuda import FakeGPU
from llrag_cli.cli import doctor
from llrag_cli.config import ModelShape
from llrag_cli.engine import attention, trials
from llrag_cli.engine.attention import BACKENDS, AttentionShape, attend, attention_at, choose_attention
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.trials import Compute, Trial, machine_of
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.models.attention import attention_backends
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.presets import load_config

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SHAPE = AttentionShape(batch=2, queries=6, keys=24, heads=2, head_dim=8, dtype="float32")
SMALL = ("backbone.height=8", "backbone.width=8", "memory.keys=average")


class Backends:
    """Backends that take as long as is said, and are exact but for what each is told to do wrong."""

    def __init__(self, milliseconds: dict[str, float], **wrong: str) -> None:
        self.milliseconds, self.wrong = milliseconds, wrong
        self.called: list[str] = []

    def attend(self, name: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.called.append(name)
        wrong = self.wrong.get(name)
        if name not in self.milliseconds or wrong == "absent":
            raise TypeError("'NoneType' object is not callable\nand more")
        exact = attend("native", query, keys, values)
        if wrong == "inaccurate":
            return exact + 0.01
        if wrong == "not finite":
            return exact * float("nan")
        return exact + 1e-6 * torch.rand_like(exact) if wrong == "random" else exact

    def clock(self, call: Callable[[], object]) -> float:
        call()
        return self.milliseconds[self.called[-1]]

    def trial(self, *, repeatable: bool = True) -> Trial:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "attend", self.attend)
            compute = attention_at(SHAPE, CPU)
            return BACKENDS.compare(SHAPE, compute, machine={"device": "none"}, repeatable=repeatable, clock=self.clock)


ALL = {"native": 1.0, "_native_cudnn": 0.8, "_flash_3": 0.5, "flash": 1.2}


def test_the_fastest_is_chosen_and_the_times_of_all_are_kept() -> None:
    found = Backends(ALL).trial()
    assert (found.chosen, found.milliseconds, found.refused) == ("_flash_3", ALL, {})


def test_what_is_not_clearly_faster_is_not_chosen() -> None:
    assert Backends({"native": 1.0, "flash": 0.98}).trial().chosen == "native"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("absent", "'NoneType' object is not callable"),
        ("inaccurate", "its result differs from that of `native` by"),
        ("not finite", "its result differs from that of `native` by nan"),
        ("random", "it does not return the same bits twice"),
    ],
)
def test_a_backend_that_is_wrong_is_left_out_with_the_reason(wrong: str, reason: str) -> None:
    found = Backends(ALL, _flash_3=wrong).trial()
    assert found.chosen == "_native_cudnn"
    assert [*found.refused] == ["_flash_3"] and found.refused["_flash_3"].startswith(reason)
    assert "_flash_3" not in found.milliseconds


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("bfloat16", 1e-2), ("float16", 2e-3)])
def test_a_backend_may_differ_by_the_rounding_of_its_type(dtype: str, error: float) -> None:
    shape, exact = replace(SHAPE, dtype=dtype), torch.ones(64)

    def refused(difference: float) -> bool:
        results = dict.fromkeys(BACKENDS.candidates, exact) | {"flash": exact + difference}
        found = BACKENDS.compare(shape, results.__getitem__, machine={}, repeatable=True, clock=lambda _: 1.0)
        return "flash" in found.refused

    assert (refused(0.9 * error), refused(1.1 * error)) == (False, True)


def test_without_determinism_other_bits_are_allowed() -> None:
    assert Backends(ALL, _flash_3="random").trial(repeatable=False).chosen == "_flash_3"


def test_on_this_machine_only_what_works_here_is_eligible() -> None:
    compute = attention_at(SHAPE, CPU)
    found = BACKENDS.compare(SHAPE, compute, machine={}, repeatable=True, clock=lambda call: float(call() is None))
    assert "native" in found.milliseconds and {*found.milliseconds} | {*found.refused} == {*BACKENDS.candidates}
    assert "flash" in found.refused


# --- on a GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with FakeGPU() as fake:
        yield fake


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[AttentionShape]:
    """The shapes that trials were made of, in which cuDNN is the fastest."""
    shapes: list[AttentionShape] = []
    backends = Backends({"native": 1.0, "_native_cudnn": 0.7})

    def counted(shape: AttentionShape, device: torch.device) -> Compute[str]:
        shapes.append(shape)
        return attention_at(shape, device)

    monkeypatch.setattr(attention, "attention_at", counted)
    monkeypatch.setattr(attention, "attend", backends.attend)
    monkeypatch.setattr(trials, "milliseconds", backends.clock)
    return shapes


def loaded(*settings: str, how: Execution | None = None) -> WanBackbone:
    config = load_config("self-forcing", memory="nearest", settings=(*SMALL, *settings))
    shape = ModelShape(num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32, text_dim=8)
    how = replace(how or Execution(), decoder_layout="contiguous")  # without a trial of its own
    pipeline = random_pipeline(config, shape, device=GPU, dtype=torch.bfloat16, how=how)
    return pipeline.backbone


def test_the_trial_is_made_once_for_a_machine_and_shape(
    gpu: FakeGPU, made: list[AttentionShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert loaded().attention == "_native_cudnn"
    assert made == [AttentionShape(batch=1, queries=48, keys=192, heads=2, head_dim=16, dtype="bfloat16")]
    loaded("memory.window=15")
    loaded(how=Execution(fast=True))
    loaded(how=Execution(batch=2))
    assert [trial.batch for trial in made] == [1, 1, 1, 2]
    machine = machine_of(GPU)
    assert sorted(trial.shape["keys"] for trial in BACKENDS.kept(machine)) == [192, 192, 192, 240]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    loaded()
    assert len(made) == 5


@pytest.mark.parametrize("content", ["", "{}", '{"backend": "flash"}', "sage"])
def test_a_damaged_file_is_found_again(gpu: FakeGPU, made: list[AttentionShape], content: str) -> None:
    loaded()
    file = BACKENDS.file_of(machine_of(GPU), made[0], repeatable=True)
    kept = file.read_text()
    file.write_text(kept.replace('"chosen": "_native_cudnn"', '"chosen": "sage"') if content == "sage" else content)
    assert BACKENDS.read(file) is None
    assert loaded().attention == "_native_cudnn"
    assert len(made) == 2 and file.read_text() == kept


def test_a_trial_of_another_machine_is_not_taken(gpu: FakeGPU, made: list[AttentionShape]) -> None:
    loaded()
    file = BACKENDS.file_of(machine_of(GPU), made[0], repeatable=True)
    kept = file.read_text()
    copied = kept.replace(torch.cuda.get_device_name(GPU), "another").replace('"_native_cudnn"', '"native"')
    assert copied != kept
    file.write_text(copied)
    assert loaded().attention == "_native_cudnn"
    assert len(made) == 2 and file.read_text() == kept


def test_a_cache_that_cannot_be_written_is_no_error(
    gpu: FakeGPU, made: list[AttentionShape], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert loaded().attention == "_native_cudnn"


def test_a_named_backend_is_taken_without_a_trial(
    gpu: FakeGPU, made: list[AttentionShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(how=Execution(attention="_native_math")).attention == "_native_math"
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "native")  # as diffusers has read it
    assert loaded().attention == "native"
    assert made == []


def test_the_trial_has_the_shape_of_a_block_at_full_size() -> None:
    with torch.device("meta"):
        backbone = WanBackbone(_full_size())
    config = load_config("self-forcing", memory="nearest")
    assert AttentionShape.of(config, backbone, batch=3) == AttentionShape(3, 4680, 18720, 12, 128, "bfloat16")
    frame = load_config("causal-forcing-framewise", memory="none")
    assert AttentionShape.of(frame, backbone, batch=1).queries == 1560


def _full_size() -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_attention_heads=12, num_layers=1).to(torch.bfloat16)


def test_time_is_that_of_the_gpu(gpu: FakeGPU) -> None:
    found = BACKENDS.compare(SHAPE, attention_at(SHAPE, GPU), machine={}, repeatable=True)  # all take as long
    assert found.chosen == "native" and found.milliseconds["native"] == 0.25
    assert {*found.milliseconds} >= {"native", "_native_cudnn"}


def test_no_trial_on_a_cpu(backbone: WanBackbone, made: list[AttentionShape]) -> None:
    choose_attention(backbone, load_config("self-forcing"), repeatable=True, batch=1)
    assert backbone.attention == "native" and made == []


# --- in a run ---------------------------------------------------------------------------------------


FEW = ("--seconds", "2", "--set", "sampler.steps=[1000]", "--device", "cpu")


def test_a_resumed_run_uses_the_recorded_backend(llrag: Llrag, tmp_path: Path) -> None:
    made = llrag("generate", "a red circle", *FEW, "--out", "run")
    assert made.returncode == 0, made.stderr
    file = tmp_path / "run/run.json"
    record = json.loads(file.read_text())
    assert record["attention"] == "native"
    assert (record["compiled"], record["cuda_graphs"]) == (False, False)

    file.write_text(json.dumps(record | {"attention": "flash"}))
    refused = llrag("generate", "--resume", "run", "--seconds", "4")
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 1
    assert "`run` was begun with another attention backend than this machine has: the attention backend `flash`" in said
    assert "or with `--attention native`" in said and json.loads(file.read_text())["attention"] == "flash"

    longer = llrag("generate", "--resume", "run", "--seconds", "4", "--attention", "native")
    said = " ".join(longer.stderr.split())
    assert longer.returncode == 0
    assert "`run` was begun with the attention backend `flash`, and continues with `native`" in said
    assert json.loads(file.read_text())["attention"] == "native"

    file.write_text(json.dumps({**json.loads(file.read_text()), "attention": "_native_math", "compiled": True}))
    extended = llrag("extend", "run", "--seconds", "2")
    assert extended.returncode == 0
    assert "`run` was begun compiled, and continues not compiled: it may differ" in " ".join(extended.stderr.split())
    record = json.loads(file.read_text())
    assert (record["attention"], record["compiled"]) == ("_native_math", False)


def test_doctor_shows_what_was_found(gpu: FakeGPU, made: list[AttentionShape]) -> None:
    assert doctor._attention("cuda:0") == "chosen by trial when a backbone is loaded for the first time"
    loaded()
    shown = doctor._attention("cuda:0")
    assert shown == "_native_cudnn for 1 x 48 tokens that attend to 192 (native 1 ms, _native_cudnn 0.7 ms)"


def test_names_are_those_of_diffusers_which_is_not_imported_for_them() -> None:
    assert set(attention_backends()) == {backend.value for backend in AttentionBackendName}
