"""Runs that are interrupted and resumed, in many ways: their files are those of runs that were not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor

from conftest import Llrag
from forked import Starter
from llrag_cli import LlragError, Pipeline, RunFolder, load_config, make_video, read_video, resume_video
from llrag_cli.cli.hints import hint_for
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.errors import NotFiniteError, OutOfMemoryError, RunDivergedError, UsageError
from llrag_cli.models.wan.transformer import WanSession
from llrag_cli.models.wan.vae import WanDecoder, WanDecoderStream
from llrag_cli.runs.commits import VideoMark
from llrag_cli.runs.folder import BlockMemory
from llrag_cli.runs.journal import Committed
from llrag_cli.runs.maker import Existing
from llrag_cli.runs.progress import Progress
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.writer import decoder_at
from llrag_cli.scenes.timeline import ShotSpan, one_shot
from waiting import wait_until

PROMPT = "a red circle and a white cross pass by on a striped blue wall"
FEW = (
    *("sampler.steps=[1000, 500]", "video.upscale=1"),
    *("memory.window=6", "memory.retrieved=2", "memory.guard=1"),
)
SECONDS = 7.0  # five blocks, of which some retrieve; three are a segment of the video
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(load_config("tiny", settings=FEW), device="cpu")


@pytest.fixture(scope="module")
def whole(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was never interrupted."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    make_video(pipeline, PROMPT, folder, seconds=SECONDS)
    return folder


def make(pipeline: Pipeline, folder: RunFolder, *, existing: Existing = "resume") -> RunRecord:
    return make_video(pipeline, PROMPT, folder, seconds=SECONDS, existing=existing)


def assert_same(one: RunFolder, other: RunFolder) -> None:
    for name in FILES:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


def stopping(monkeypatch: pytest.MonkeyPatch, *, block: int, error: BaseException) -> None:
    """Let sessions fail when they are about to return a block."""
    next_block = Session.__next__

    def failing(session: Session) -> Block:
        each = next_block(session)
        if each.index == block:
            raise error
        return each

    monkeypatch.setattr(Session, "__next__", failing)


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), LlragError, "failed"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), LlragError, "failed"),
        (ValueError("a mistake of ours"), ValueError, "failed"),
    ],
)
@pytest.mark.parametrize("block", [0, 1, 4])
def test_an_interrupted_run_resumes_to_the_same_files(
    pipeline: Pipeline,
    whole: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    status: str,
    block: int,
) -> None:
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        stopping(patched, block=block, error=error)
        with pytest.raises(raised) as said:
            make(pipeline, folder)
    record = folder.read_record()
    assert (record.status, record.blocks_committed) == (status, block)
    if isinstance(said.value, LlragError):
        assert isinstance(said.value, OutOfMemoryError)
        assert said.value.problem == record.error == f"out of memory in block {block}"
        assert "memory.archive" in said.value.hint and "--" not in said.value.hint
        assert "--archive" in hint_for(said.value) and f"--resume {folder.path}" in hint_for(said.value)
    if block:
        assert len(read_video(folder.video)) == 12 * block - 3 == record.video_frames_written
        assert load_file(folder.latents)["latents"].shape == (3 * block, 8, 8, 8)
    record = resume_video(pipeline, folder)
    assert (record.status, record.resumed_at, record.error) == ("complete", (block,), None)
    assert_same(folder, whole)
    assert resume_video(pipeline, folder) == record  # there is nothing left to do


def test_a_disk_that_fills_up_at_any_write_costs_nothing(
    pipeline: Pipeline, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"write": 0, "fsync": 0}
    real = {"write": os.write, "fsync": os.fsync}
    fault: dict[str, Any] = {"name": None, "at": 0, "short": False}

    def counting(name: str) -> Callable[..., Any]:
        def call(number: int, *data: bytes) -> Any:
            calls[name] += 1
            if fault["name"] == name and calls[name] > fault["at"]:
                if fault["short"] and calls[name] == fault["at"] + 1:
                    return real["write"](number, data[0][: len(data[0]) // 2])  # and then the disk is full
                raise OSError(errno.ENOSPC, "No space left on device")
            return real[name](number, *data)

        return call

    for name in calls:
        monkeypatch.setattr(f"llrag_cli.files.durable.os.{name}", counting(name))
    make(pipeline, RunFolder(tmp_path / "counted"))
    total = dict(calls)
    for name, short, first in (("write", False, 2), ("write", True, 6), ("fsync", False, 6)):
        for at in range(first, total[name], 8):  # some, after run.owner and run.json; benchmarks/faults.py tries all
            calls.update(write=0, fsync=0)
            fault.update(name=name, at=at, short=short)
            folder = RunFolder(tmp_path / f"{name}-{short}-{at}")
            with pytest.raises(LlragError, match=r"no space left on device"):
                make(pipeline, folder)
            fault.update(name=None)
            at_the_end = name == "fsync" and at == total[name] - 1  # of the folder: the complete record is there
            assert folder.read_record().status in (("complete",) if at_the_end else ("running", "failed"))
            make(pipeline, folder)
            assert_same(folder, whole)
            shutil.rmtree(folder.path)


def test_a_finished_run_is_known_from_its_files(whole: RunFolder, tmp_path: Path) -> None:
    record = whole.read_record()
    assert record.is_complete and whole.is_finished(record) and whole.is_finished(record, seconds=2)
    assert not whole.is_finished(record, seconds=SECONDS + 5)
    assert not whole.is_finished(record.updated(status="running"))
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.video.unlink()
    assert not folder.is_finished(record)


def test_a_lost_or_damaged_video_is_made_again(pipeline: Pipeline, whole: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.video.unlink()
    resume_video(pipeline, folder)
    assert_same(folder, whole)


def test_changed_latents_are_named(pipeline: Pipeline, whole: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    content = bytearray(folder.latents.read_bytes())
    content[-5] ^= 1
    folder.latents.write_bytes(content)
    folder.video.unlink()
    with pytest.raises(LlragError, match=r"latents\.safetensors` is damaged: it or .* has changed in block 4"):
        resume_video(pipeline, folder)


def test_a_longer_video_is_the_same_as_one_made_at_once(pipeline: Pipeline, whole: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    told: list[Progress] = []
    make_video(pipeline, PROMPT, folder, seconds=3, on_progress=told.append)
    assert [state.done for state in told if state.done] == [1, 2, 3]
    assert told[-1].seconds_of_video == told[-1].new_seconds == 33 / 8  # nine latent frames are 33 at 8 fps
    with pytest.raises(UsageError, match="is a run of 3 s and cannot be shortened to 2 s"):
        resume_video(pipeline, folder, seconds=2)
    resume_video(pipeline, folder, seconds=SECONDS)
    assert_same(folder, whole)


def test_a_new_prompt_takes_over_where_the_video_ended(pipeline: Pipeline, tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    make_video(pipeline, PROMPT, folder, seconds=5)
    before = load_file(folder.latents)["latents"]
    shutil.copytree(folder.path, other.path)
    record = resume_video(pipeline, folder, seconds=9, prompt="a green square on a pink wall")
    assert [(shot.start, shot.prompt) for shot in record.timeline.shots] == [
        (0, PROMPT),
        (4, "a green square on a pink wall"),
    ]
    resume_video(pipeline, other, seconds=9)
    made, plain = (load_file(each.latents)["latents"] for each in (folder, other))
    assert torch.equal(made[: len(before)], before)
    assert not torch.allclose(made[len(before) :], plain[len(before) :], atol=0.1)
    shutil.copytree(folder.path, tmp_path / "cut")
    cut = RunFolder(tmp_path / "cut")
    commits = (cut.path / "commits.jsonl").read_text().splitlines(keepends=True)
    (cut.path / "commits.jsonl").write_text("".join(commits[:5]))  # as if killed there
    cut.write_record(record.updated(status="running"))
    resume_video(pipeline, cut)
    assert_same(cut, folder)


def test_a_block_that_is_not_finite_stops_the_run(
    pipeline: Pipeline, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    flow, calls = WanSession.flow, [0]

    def breaking(session: WanSession, noisy: Tensor, timestep: Tensor) -> Tensor:
        calls[0] += 1
        return flow(session, noisy, timestep) * (torch.nan if calls[0] == 2 * 2 + 1 else 1)  # two steps a block

    with monkeypatch.context() as patched:
        patched.setattr(WanSession, "flow", breaking)
        with pytest.raises(NotFiniteError, match="block 2 has NaN or infinite values"):
            make(pipeline, folder)
    record = folder.read_record()
    assert (record.status, record.blocks_committed) == ("failed", 2)
    assert record.error == "block 2 has NaN or infinite values"
    resume_video(pipeline, folder)
    assert_same(folder, whole)


def test_two_runs_never_write_one_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.lock():
        for attempt in (lambda: make(pipeline, folder), lambda: resume_video(pipeline, folder)):
            with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is writing `.*run`"):
                attempt()
    make(pipeline, folder)


def test_a_run_with_other_settings_is_not_resumed(pipeline: Pipeline, whole: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UsageError, match="was started with other settings: `prompt`, `seed`"):
        make_video(pipeline, "a white cross", folder, seconds=5, seed=3, existing="resume")
    assert_same(folder, whole)
    record = make_video(pipeline, "a white cross", folder, seconds=2, seed=3, existing="renew")
    assert (record.prompt, record.status, record.resumed_at) == ("a white cross", "complete", ())


# --- the command line -------------------------------------------------------------------------------


def test_resume_and_extend_from_the_command_line(llrag: Llrag, tmp_path: Path) -> None:
    few = ("--set", FEW[0])
    assert llrag("generate", PROMPT, "--seconds", "3", "--out", "run", *few).returncode == 0
    again = llrag("generate", PROMPT, "--seconds", "3", "--out", "run", *few)
    assert again.returncode == 2
    assert "`run` already contains a run" in again.stderr and "`llrag generate --resume run`" in again.stderr
    done = llrag("generate", "--resume", "run", "--seconds", "6", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_at"] == [3]
    done = llrag("extend", "run", "--seconds", "4", "--prompt", "a white dragon")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run/video.mp4\n" and "ignored: dragon" in done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["seconds"] == 10
    shots = [(shot["start"], shot["stop"], shot["prompt"], shot["kind"]) for shot in record["timeline"]["shots"]]
    assert shots == [(0, 5, PROMPT, "start"), (5, 7, "a white dragon", "switch")]
    assert len(read_video(tmp_path / "run/video.mp4")) == record["video_frames"] == 81


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume", "nowhere"), "no run folder `nowhere`"),
        (("--resume", "empty"), "`empty` is not a run folder: it has no run.json"),
        (
            ("--resume", "old"),
            "`old/run.json` has schema 1, written by an earlier version; this version reads",
        ),
        (("--resume", "run", "--seconds", "1"), "cannot be shortened to 1 s"),
        (("--resume", "run", "--seed", "0", "--seconds", "-1"), "a video cannot last -1 seconds"),
        (("another prompt", "--resume", "run", "--seed", "5"), "started with other settings: `prompt`, `seed`"),
        (("--resume", "run", "--set", "memory.guard=2"), "started with other settings: `memory.guard`"),
        (("--resume", "run", "--memory", "random"), "started with other settings: `memory.strategy`"),
        (("--resume", "run", "--no-rag", "--backbone", "longlive"), "other settings: `backbone`"),
        (("--resume", "run", "--no-rag"), "other settings: `memory.strategy`"),
        (("--resume", "run", "--dtype", "bfloat16"), "other settings: `dtype`"),
        (("--resume", "run", "--out", "there"), "`--out` cannot be combined with `--resume`"),
        (("--resume", "run", "--force"), "`--force` cannot be combined with `--resume`"),
    ],
)
def test_wrong_turns(llrag: Llrag, whole: RunFolder, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    record = {"config": {"memory": {}}, "fps": 8, "latent_frames": 9}
    (tmp_path / "old/run.json").write_text(json.dumps(record))
    done = llrag("generate", *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr and "hint: " in done.stderr
    assert_same(RunFolder(tmp_path / "run"), whole)


def test_a_finished_run_is_not_loaded_again(
    llrag: Llrag, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    done = llrag("generate", "--resume", "run")
    assert (done.returncode, done.stdout) == (0, "run/video.mp4\n")
    assert "`run` is already complete" in done.stderr
    assert json.loads(llrag("generate", "--resume", "run", "--json").stdout)["status"] == "complete"
    refused = llrag("generate", PROMPT, "--out", "run")
    assert refused.returncode == 2 and "`run` already contains a run" in refused.stderr


def test_resuming_a_finished_run_does_not_import_torch(whole: RunFolder) -> None:
    code = (
        "import sys\n"
        "from llrag_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "--resume", str(whole.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{whole.video}\n"


def test_the_same_command_resumes_many_prompts(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na white cross\n")
    command = ("generate", "--prompts", "prompts.txt", "--seconds", "2", "--out", "all", "--json", "--set", FEW[0])
    first = json.loads(llrag(*command).stdout)
    shutil.rmtree(tmp_path / "all/002-a-white-cross")
    again = llrag(*command)
    assert again.returncode == 0, again.stderr
    records = json.loads(again.stdout)
    assert records[0] == first[0]
    assert records[1]["status"] == "complete"
    other = llrag(*command, "--seed", "4")
    assert other.returncode == 2 and "other settings: `seed`" in other.stderr


def test_a_run_killed_twice_resumes_to_the_same_files(
    starter: Starter, pipeline: Pipeline, whole: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "killed")
    settings = [word for setting in FEW for word in ("--set", setting)]
    command = ["generate", PROMPT, "--seconds", f"{SECONDS:g}", "--out", "killed", *settings]
    for blocks in (1, 3):
        with starter.start(tmp_path, *command) as process:
            wait_until(lambda: folder.blocks_committed() >= blocks, process)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert folder.read_record().status == "running"
        command = ["generate", "--resume", "killed"]
    resume_video(pipeline, folder)
    assert_same(folder, whole)


def test_a_run_resumes_with_as_many_latents_as_the_decoder_of_wan_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 of 45 latent frames are in whole segments of the video, 38 of them are decoded again to warm up."""
    decoder = WanDecoder(AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4))
    seen: list[int] = []
    decode = WanDecoderStream.decode

    def watched(stream: WanDecoderStream, latents: Tensor) -> Tensor:
        seen.append(latents.shape[1])
        return latents if latents.shape[1] > 1 else decode(stream, latents)

    monkeypatch.setattr(WanDecoderStream, "decode", watched)
    latents = torch.randn(1, 45, 4, 2, 2)
    timeline = one_shot("a cat", load_config("tiny"), latent_frames=45)
    mark = VideoMark(bytes=1, frames=1, fragments=1, blocks=14, crc32=0)
    decoder_at(decoder, timeline, Committed(latents, (BlockMemory(0),) * 15, video=mark))
    assert seen == [38]
    seen.clear()
    decoder_at(
        decoder, timeline, Committed(latents, (BlockMemory(0),) * 15, video=mark.model_copy(update={"blocks": 3}))
    )
    assert seen == [9]  # all there are
    seen.clear()
    decoder_at(decoder, timeline, Committed(latents, (BlockMemory(0),) * 15))
    assert seen == []
    kinds = {"start": 0, "switch": 2, "cut": 5, "later switch": 7, "later cut": 12}
    shots = [
        ShotSpan.model_validate(
            {
                "name": name,
                "start": start,
                "stop": stop,
                "kind": name.removeprefix("later "),
                "prompt": name,
                "sink": name,
                "remember": "all",
            }
        )
        for (name, start), stop in zip(kinds.items(), [*[*kinds.values()][1:], 15], strict=True)
    ]
    timeline = timeline.model_copy(update={"shots": tuple(shots)})
    decoder_at(
        decoder, timeline, Committed(latents, (BlockMemory(0),) * 15, video=mark.model_copy(update={"blocks": 8}))
    )
    assert seen == [1, 9]  # nothing of before the cut; of a cut to come nothing is known


def test_a_run_that_retrieves_other_frames_is_not_resumed(pipeline: Pipeline, whole: RunFolder, tmp_path: Path) -> None:
    """As on a machine that computes differently: the log of the last block that is committed names another frame."""
    shutil.copytree(whole.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = folder.memory.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[-1])
    entry["retrieved"][0] = next(frame for frame in range(20) if frame not in entry["retrieved"])
    lines[-1] = (json.dumps(entry) + "\n").encode()
    commits = folder.commits.read_text().splitlines()
    last = json.loads(commits[-1])
    content = folder.latents.read_bytes()[-3 * 8 * 8 * 8 * 4 :]
    last |= {"crc32": zlib.crc32(lines[-1], zlib.crc32(content)), "memory_bytes": sum(map(len, lines))}
    folder.commits.write_text("\n".join([*commits[:-1], json.dumps(last)]) + "\n")
    folder.memory.write_bytes(b"".join(lines))
    folder.write_record(folder.read_record().updated(status="running"))
    with pytest.raises(RunDivergedError, match="cannot be resumed here: block 4 retrieves other frames than before"):
        resume_video(pipeline, folder)
    assert folder.memory.read_bytes() == b"".join(lines)
    assert folder.read_record().status == "failed"
