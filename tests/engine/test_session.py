"""Sessions: each video owns what it needs, so any number of them share one pipeline."""

from __future__ import annotations

import gc
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli import LlragError, Pipeline, load_config
from llrag_cli.cache.tiers import TIERS
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.engine.timing import time_blocks
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.models.wan.transformer import WanSession, _bound

FEW = ["sampler.steps=[1000, 500]", "memory.window=6", "memory.retrieved=2", "memory.guard=0"]
PROMPTS = ("a red circle bounces around on a plain gray wall", "a white cross passes by on a striped blue wall")
SECONDS = 6.0


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(load_config("tiny", settings=[*FEW, "memory.archive=device"]), device="cpu")


def under(pipeline: Pipeline, *settings: str, memory: str | None = None) -> Pipeline:
    few = [setting for setting in FEW if memory != "none" or not setting.startswith(("memory.retr", "memory.guard"))]
    return pipeline.with_memory(load_config("tiny", memory=memory, settings=[*few, *settings]))


def starts(pipeline: Pipeline) -> list[Session]:
    """Two different videos."""
    return [pipeline.start(prompt, seconds=SECONDS, seed=seed) for seed, prompt in enumerate(PROMPTS)]


def results(blocks: list[Block]) -> tuple[Tensor, Tensor, list[list[list[int]]]]:
    latents = torch.cat([block.latents for block in blocks], dim=1)
    return latents, torch.cat([block.frames for block in blocks], dim=1), [block.retrieved for block in blocks]


def assert_same(one: list[Block], other: list[Block]) -> None:
    (latents, frames, retrieved), (latents2, frames2, retrieved2) = results(one), results(other)
    assert torch.equal(latents, latents2)
    assert torch.equal(frames, frames2)
    assert retrieved == retrieved2


@pytest.mark.parametrize("tier", [None, *TIERS])
def test_interleaved_sessions_give_what_each_gives_alone(pipeline: Pipeline, tier: str | None) -> None:
    shared = under(pipeline, memory="none") if tier is None else under(pipeline, f"memory.archive={tier}")
    alone = [list(session) for session in starts(shared)]
    together: list[list[Block]] = [[], []]
    for pair in zip_longest(*starts(shared)):
        for blocks, block in zip(together, pair, strict=True):
            if block.index % 2:
                block.frames  # noqa: B018 - decoding is interleaved as well
            blocks.append(block)
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    if tier is not None:
        assert any(block.retrieved for block in together[0])


def test_sessions_of_several_memories_share_one_pipeline(pipeline: Pipeline) -> None:
    memories = [pipeline, under(pipeline, memory="none"), under(pipeline, "memory.archive=host", memory="diverse")]
    alone = [list(one.start(PROMPTS[0], seconds=SECONDS)) for one in memories]
    together = list(zip(*(one.start(PROMPTS[0], seconds=SECONDS) for one in memories), strict=True))
    for blocks, interleaved in zip(alone, zip(*together, strict=True), strict=True):
        assert_same(blocks, list(interleaved))


@pytest.mark.parametrize("memory", ["none", "nearest"])
def test_sessions_advance_from_several_threads(pipeline: Pipeline, memory: str) -> None:
    shared = under(pipeline, memory=memory)
    alone = [list(session) for session in starts(shared)]

    def run(session: Session) -> list[Block]:
        blocks = []
        for block in session:
            block.frames  # noqa: B018 - decoded in this thread
            blocks.append(block)
        return blocks

    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(run, [*starts(shared), *starts(shared)]))
    for number, blocks in enumerate(threaded):
        assert_same(alone[number % 2], blocks)


def test_a_pipeline_generates_the_same_video_twice(pipeline: Pipeline) -> None:
    first, second = (list(pipeline.start(PROMPTS[0], seconds=3)) for _ in range(2))
    assert [block.frames.shape[1] for block in second] == [9, 12, 12]
    assert_same(first, second)


def test_a_batch_is_one_session(pipeline: Pipeline) -> None:
    alone = [results(list(pipeline.start(p, seconds=3, samples=[n]))) for n, p in enumerate(PROMPTS)]
    latents, frames, _ = results(list(pipeline.start(PROMPTS, seconds=3)))
    for row in range(2):
        torch.testing.assert_close(latents[row : row + 1], alone[row][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(frames[row : row + 1], alone[row][1], atol=1e-3, rtol=1e-3)


def test_frames_are_decoded_in_order_whenever_they_are_asked_for(pipeline: Pipeline) -> None:
    expected = [block.frames for block in pipeline.start(PROMPTS[0], seconds=6)]
    blocks = list(pipeline.start(PROMPTS[0], seconds=6))
    for index in (3, 0, 3, 2, 1):
        assert torch.equal(blocks[index].frames, expected[index])
    with pipeline.start(PROMPTS[0], seconds=6) as session:
        for block in session:  # the others are not kept
            if block.index == 3:
                assert torch.equal(block.frames, expected[3])
    with pipeline.start(PROMPTS[0], seconds=6) as session:
        for _ in range(3):
            next(session)  # not even the block before is kept, but its latents are
        assert torch.equal(next(session).frames, expected[3])


def test_frames_that_nobody_asks_for_cost_no_memory(pipeline: Pipeline) -> None:
    session = pipeline.start(PROMPTS[0], seconds=SECONDS)
    for _ in session:
        assert len(session._frames._pending) <= 3  # the new block, the one that `_` still names, one within reach


def held(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """References to the keys of the window and the buffers of each session, filled as sessions are closed."""
    references: list[weakref.ref[Tensor]] = []
    close = WanSession.close

    def spy(session: WanSession) -> None:
        for layer in session.cache.layers:
            for tensor in (layer.pages._keys, *(buffer.tensor for buffer in layer.buffers)):
                if tensor is not None:
                    references.append(weakref.ref(tensor))
        close(session)

    monkeypatch.setattr(WanSession, "close", spy)
    return references


@pytest.mark.parametrize("ending", ["end", "close", "context", "garbage", "error"])
def test_every_ending_frees_what_a_session_held(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, ending: str
) -> None:
    """At once: what only the garbage collector finds would be missing on a GPU, which it knows nothing of."""
    references = held(pipeline, monkeypatch)
    gc.collect()
    gc.disable()
    request.addfinalizer(gc.enable)
    session = pipeline.start(PROMPTS[0], seconds=SECONDS)
    if ending == "end":
        kept = [block.latents for block in session]
        assert len(kept) == session.block_count
    elif ending == "close":
        next(session)
        session.close()
        session.close()
    elif ending == "context":
        with session:
            next(session)
    elif ending == "garbage":
        next(session)
        del session
        gc.collect()
    else:
        next(session)

        def fail(*_: object) -> Tensor:
            raise LlragError("broken")

        monkeypatch.setattr("llrag_cli.engine.rollout.denoise", lambda *_, **__: fail())
        with pytest.raises(LlragError, match="broken") as caught:
            next(session)
        del caught
        gc.collect()  # tracebacks are in circles
    assert references
    assert all(reference() is None for reference in references)
    backbone = pipeline.backbone
    assert _bound.current is None
    assert all(cross.keys is cross.values is None for cross in backbone._cross_attention)


def own_encoder(file: Path, *, side: int = 8) -> Path:
    """Write a random retrieval encoder for latent frames of ``side`` x ``side``."""
    torch.manual_seed(0)
    sizes = EncoderConfig(in_channels=8, spatial_h=side, spatial_w=side, latent_dim=4, hidden_dims=(4,))
    encoder = LatentAutoencoder(sizes)
    save_file(encoder.state_dict(), file, metadata={"config": sizes.model_dump_json()})
    return file


def test_a_memory_with_another_encoder_looks_frames_up_with_it(pipeline: Pipeline, tmp_path: Path) -> None:
    """As if the weights had been loaded with it; and the other way round, back to the first one."""
    file = json.dumps(str(own_encoder(tmp_path / "own.safetensors")))
    average = under(pipeline, "memory.archive=device", "memory.keys=average")
    other = average.with_memory(under(pipeline, "memory.archive=device", f"memory.encoder={file}").config)
    pipelines = {
        "first": pipeline,
        "other": other,
        "loaded": Pipeline.load(other.config, device="cpu"),
        "back": other.with_memory(pipeline.config),
    }
    videos = {name: list(each.start(PROMPTS[0], seconds=4.5)) for name, each in pipelines.items()}
    found = {name: [block.similarities for block in blocks if block.retrieved] for name, blocks in videos.items()}
    assert found["other"] == found["loaded"] != found["first"] == found["back"]
    for one, same in (("other", "loaded"), ("first", "back")):
        assert torch.equal(*(torch.cat([block.latents for block in videos[name]], dim=1) for name in (one, same)))


def test_an_encoder_of_another_size_is_refused_with_its_memory(pipeline: Pipeline, tmp_path: Path) -> None:
    file = json.dumps(str(own_encoder(tmp_path / "own.safetensors", side=4)))
    with pytest.raises(LlragError, match="made for latents of 8x4x4, `tiny` writes 8x8x8"):
        under(pipeline, f"memory.encoder={file}")


def test_a_closed_session_ends(pipeline: Pipeline) -> None:
    session = pipeline.start(PROMPTS[0], seconds=SECONDS)
    first, second = next(session), next(session)
    frames = first.frames
    session.close()
    assert torch.equal(first.frames, frames)
    with pytest.raises(RuntimeError, match="the session is closed"):
        second.frames  # noqa: B018 - the access is what is tested
    with pytest.raises(StopIteration):
        next(session)


@pytest.mark.parametrize(("prompt", "seconds"), [("", 3.0), (["a circle", " "], 3.0), ("a circle", 0.0)])
def test_an_invalid_request_starts_nothing(pipeline: Pipeline, prompt: str | list[str], seconds: float) -> None:
    with pytest.raises(LlragError):
        pipeline.start(prompt, seconds=seconds)


def test_a_pipeline_is_loaded_by_name_by_file_or_from_a_configuration(tmp_path: Path) -> None:
    config = load_config("tiny", settings=["memory.retrieved=2"])
    file = tmp_path / "tiny.yaml"
    file.write_text(config.model_dump_json())  # JSON is YAML
    assert Pipeline.load("tiny").config == load_config("tiny")
    assert Pipeline.load(config).config == config
    assert Pipeline.load(file).config == config


def test_blocks_are_timed_once_the_window_is_full(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=iter((100.0, 100.5)).__next__)
    monkeypatch.setattr("llrag_cli.engine.timing.time", clock)
    timed = time_blocks(pipeline, PROMPTS[0])
    assert timed is not None
    assert [each.shape[1] for each in timed.frames] == [12, 12]  # not the shorter first block
    assert timed.frames_per_second == 48
