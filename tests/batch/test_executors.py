"""Many videos by several workers: the same files as one after the other, though workers die."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from conftest import Llrag, call_llrag
from forked import Starter
from jobs import die, double
from llrag_cli.batch.executors import Processes, RayCluster, _OwnThread, parse_engine
from llrag_cli.errors import UsageError
from waiting import wait_until

FEW = ("--set", "sampler.steps=[1000, 500]", "--set", "video.upscale=1")
MANY = ("generate", "--prompts", "prompts.txt", "--seconds", "14", *FEW)
PROMPTS = "a red circle\na white cross passes by\na green square\n"
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos as the local engine makes them."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "prompts.txt").write_text(PROMPTS)
    done = call_llrag(folder, *MANY, "--out", "all", "--engine", "local")
    assert done.returncode == 0, done.stderr
    return folder / "all"


def worker_of(run: Path) -> int:
    """The process that writes a run, once it has committed some blocks."""
    commits = run / "commits.jsonl"
    wait_until(lambda: commits.exists() and commits.read_bytes().count(b"\n") >= 3)
    return int((run / "run.owner").read_text().split()[1])


@pytest.mark.parametrize("engine", ["local:2", "ray"])
def test_a_worker_may_die(starter: Starter, alone: Path, tmp_path: Path, engine: str) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    with starter.start(tmp_path, *MANY, "--out", "all", "--engine", engine) as process:
        os.kill(worker_of(tmp_path / "all/002-a-white-cross-passes-by"), signal.SIGKILL)
        code = process.wait()
        told, said = process.said()
    assert code == 0, said
    assert [Path(line).parent.name for line in told.splitlines()] == sorted(run.name for run in alone.iterdir())
    for run in alone.iterdir():
        for name in FILES:
            assert (tmp_path / "all" / run.name / name).read_bytes() == (run / name).read_bytes()
    record = json.loads((tmp_path / "all/002-a-white-cross-passes-by/run.json").read_text())
    assert record["resumed_at"][0] >= 3


def test_an_interrupt_is_one_sentence(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    with starter.start(tmp_path, *MANY, "--out", "all", "--engine", "local:2") as process:
        worker_of(tmp_path / "all/002-a-white-cross-passes-by")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait() == 130
        _, said = process.said()
    assert "the same command continues from here" in said and "Traceback" not in said


def test_outcomes_carry_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = sorted(Processes(2).run(double, [1, -2, 3], on_tick=lambda: None), key=lambda each: each.number)
    assert [outcome.result for outcome in outcomes] == [2, None, 6]
    error = outcomes[1].error
    assert isinstance(error, UsageError) and (error.problem, error.hint) == ("-2 is no number of videos", "take more")
    monkeypatch.setattr("llrag_cli.batch.executors.TRIES", 2)
    (outcome,) = Processes(2).run(die, [1], on_tick=lambda: None)
    assert outcome.error is not None and outcome.error.problem == "the job crashed 2 workers"


def test_latents_are_collected_by_several(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    collect = ("collect", "prompts.txt", "--backbone", "tiny", "--seconds", "2", *FEW)
    assert llrag(*collect, "--out", "one").returncode == 0
    done = llrag(*collect, "--out", "two", "--engine", "local:2")
    assert done.returncode == 0, done.stderr
    for number in range(3):
        name = f"latent_{number:06d}.safetensors"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_engines_have_names() -> None:
    assert parse_engine("local") is parse_engine("local:1") is None
    processes, cluster = parse_engine("local:3"), parse_engine("ray:10.0.0.1:6379?gpus=0.5")
    assert isinstance(processes, Processes) and processes.count == 3
    assert isinstance(cluster, RayCluster) and (cluster.address, cluster.gpus) == ("10.0.0.1:6379", 0.5)
    for address, expected in (("ray", (None, None)), ("ray?gpus=2", (None, 2.0)), ("ray:auto", ("auto", None))):
        cluster = parse_engine(address)
        assert isinstance(cluster, RayCluster) and (cluster.address, cluster.gpus) == expected
    for wrong in ("local:0", "local:two", "local:2?gpus=0.5", "spark", "ray:", "ray?gpus=-1", "ray?cpus=1", ""):
        with pytest.raises(UsageError, match=f"unknown engine `{re.escape(wrong)}`"):
            parse_engine(wrong)
    with pytest.raises(UsageError, match=r"1\.5 GPUs cannot be reserved"):
        parse_engine("ray?gpus=1.5")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a cat", "--engine", "local:2"), "the engine `local:2` generates many videos"),
        (("a cat", "--engine", "slurm"), "unknown engine `slurm`"),
        (
            ("--prompts", "prompts.txt", "--out", "all", "--engine", "ray:127.0.0.1:1"),
            "no Ray cluster at `127.0.0.1:1`",
        ),
    ],
)
def test_wrong_turns(llrag: Llrag, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    done = llrag("generate", *arguments)
    assert done.returncode in (1, 2)
    assert said in " ".join(done.stderr.split()) and "hint: " in done.stderr


def test_what_other_threads_print_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray prints messages about dead workers from a thread of its own."""
    stdout: Any = _OwnThread()
    with redirect_stdout(stdout):
        sys.stdout.write("a result")
        thread = Thread(target=lambda: sys.stdout.write("a worker died"))
        thread.start()
        thread.join()
    assert capsys.readouterr() == ("a result", "a worker died")
