"""What tests share: small random models, and a folder to call the command line in."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer.main
from diffusers import WanTransformer3DModel
from hypothesis import settings
from torch import Tensor

from forked import Starter
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.cli.main import main
from llrag_cli.engine.rollout import Block, rollout
from llrag_cli.evaluation.metrics import features
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.memory.strategies import MemoryConfig
from llrag_cli.models.wan.transformer import WanBackbone, WanSession
from llrag_cli.sampling.noise import AddressedNoise, Noise
from llrag_cli.sampling.schedule import FlowMatchSchedule
from skips import unexpected

if "PYTEST_XDIST_WORKER" in os.environ:  # workers, and what they start, share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
else:
    torch.set_num_threads(2)
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("explore", deadline=None, max_examples=1000)  # HYPOTHESIS_PROFILE=explore pytest
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
features.SHORTER_SIDE = 64  # pixels, where users have 224: most of the time of a score is spent there
typer.main.get_command = functools.lru_cache(typer.main.get_command)  # commands do not change between calls


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail tests that are skipped for a reason which is not in ``skips.ALLOWED``."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and unexpected(report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped for a reason that is not in tests/skips.py: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("LLRAG_WEIGHTS", raising=False)


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts commands in processes of their own."""
    process = Starter()
    yield process
    process.close()


GOLDENS = Path(__file__).parent / "goldens"
SHAPE = (4, 4, 6)  # channels, height, width of the small backbone's latent frames


@pytest.fixture(scope="session")
def transformer() -> WanTransformer3DModel:
    """A Wan transformer of two layers with random weights; all of its parameters matter."""
    torch.manual_seed(3)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=SHAPE[0],
        out_channels=SHAPE[0],
        text_dim=8,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture
def backbone(transformer: WanTransformer3DModel) -> WatchedBackbone:
    """The small transformer as an autoregressive backbone; ``sessions`` lists those that were started."""
    return WatchedBackbone(transformer)


class WatchedBackbone(WanBackbone):
    """Keeps the sessions that it started, so that tests can look into them."""

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__(transformer)
        self.sessions: list[WanSession] = []

    def start(self, prompt: Tensor, cache: WanKVCache) -> WanSession:
        self.sessions.append(super().start(prompt, cache))
        return self.sessions[-1]


Write = Callable[..., list[Block]]


@pytest.fixture
def write(backbone: WanBackbone) -> Write:
    """Writes videos with the small backbone: ``write(memory, frames=..., batch=..., seed=...)``."""

    def run(
        memory: MemoryConfig,
        *,
        frames: int = 24,
        block: int = 3,
        batch: int = 1,
        seed: int = 0,
        samples: tuple[int, ...] | None = None,
        encode: KeyEncoder = average_pool,
        noise: Noise | None = None,
        on_block: Callable[[Block], None] = lambda block: None,
    ) -> list[Block]:
        prompts = torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(1))
        chosen = samples or tuple(range(batch))
        blocks = []
        for made in rollout(
            backbone,
            prompts[list(chosen)],
            frames=frames,
            shape=SHAPE,
            block=block,
            schedule=FlowMatchSchedule(steps=[1000, 500], shift=5.0),
            memory=memory,
            history=History(encode),
            noise=noise or AddressedNoise(seed, chosen),
        ):
            on_block(made)
            blocks.append(made)
        return blocks

    return run


def latents_of(blocks: list[Block]) -> Tensor:
    """All latents [B, F, C, H, W] of a rollout."""
    return torch.cat([block.latents for block in blocks], dim=1)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Llrag = Callable[..., Done]


@pytest.fixture
def llrag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Llrag:
    """Calls the program in an empty folder, in this process, so that torch loads once."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["llrag", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


def call_llrag(folder: Path, *arguments: str) -> Done:
    """As the fixture ``llrag``, in a folder that is given: for fixtures that the tests of a module share."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["llrag", *arguments])
        patch.setenv("XDG_CACHE_HOME", str(folder / ".cache"))
        patch.delenv("LLRAG_WEIGHTS", raising=False)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
