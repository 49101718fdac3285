"""The command line as a user meets it: runs, folders, help and every wrong turn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conftest import Llrag
from forked import Started, Starter
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.presets import preset_names
from llrag_cli.runs.video import read_video
from waiting import wait_until

PROMPT = "a red circle bounces around on a striped blue wall"


def test_a_prompt_becomes_a_run_folder(llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("generate", PROMPT, "--seconds", "2", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "run/video.mp4\n"
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "complete"
    assert [(shot["start"], shot["prompt"]) for shot in record["timeline"]["shots"]] == [(0, PROMPT)]
    assert record["config"]["memory"]["strategy"] == "nearest"
    assert record["video_frames_written"] == record["video_frames"] == 4 * (record["latent_frames"] - 1) + 1
    assert len(read_video(tmp_path / "run/video.mp4")) == record["video_frames"]
    lines = [json.loads(line) for line in (tmp_path / "run/memory.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(0, record["latent_frames"], 3))


def test_prompts_from_a_file_as_json(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n  a white cross passes by a purple dragon  \n")
    arguments = ("generate", "--prompts", "prompts.txt", "--seconds", "1", "--no-rag", "--out", "all", "--json")
    done = llrag(*arguments)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["folder"] for record in records] == [
        "all/001-a-red-circle-bounces-around-on-a-striped-blue-wa",
        "all/002-a-white-cross-passes-by-a-purple-dragon",
    ]
    assert records[1]["unknown_words"] == ["dragon"]
    assert "understood: white cross, passes by, purple · ignored: dragon\n" in done.stderr
    memory = {"strategy": "none", "window": 12, "sink": 1, "recache": "keep", "commit": "full", "commit_frames": None}
    assert records[0]["config"]["memory"] == memory


def test_where_the_archive_goes_is_recorded(llrag: Llrag, tmp_path: Path) -> None:
    records = {}
    for tier in ("auto", "disk", "recompute"):
        few = ("--set", "sampler.steps=[1000, 500]", "--seconds", "9")
        done = llrag("generate", PROMPT, *few, "--archive", tier, "--out", tier)
        assert done.returncode == 0, done.stderr
        records[tier] = json.loads((tmp_path / tier / "run.json").read_text())
    assert records["auto"]["config"]["memory"]["archive"] == records["auto"]["archive"]["tier"] == "device"
    assert records["auto"]["archive"] | {"tier": ""} == records["disk"]["archive"] | {
        "tier": "",
        "moved": 0,
        "hit_rate": 1.0,
    }
    for tier in ("disk", "recompute"):
        use = records[tier]["archive"]
        assert 0 < use["moved"] <= use["retrieved"]
        assert use["hit_rate"] == round(1 - use["moved"] / use["retrieved"], 4)
        files = {"video.mp4", "run.json", "memory.jsonl", "latents.safetensors", "commits.jsonl", "run.lock"}
        assert {file.name for file in (tmp_path / tier).iterdir()} == files  # and nothing of the archive
    assert (tmp_path / "auto/memory.jsonl").read_bytes() == (tmp_path / "disk/memory.jsonl").read_bytes()
    assert (tmp_path / "auto/video.mp4").read_bytes() == (tmp_path / "disk/video.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (("--archive", "dsk"), "unknown archive `dsk`", "did you mean `disk`?"),
        (
            ("--archive", "disk", "--no-rag"),
            "`--archive` applies to retrieval, and the memory strategy is `none`",
            "leave out",
        ),
        (("--memory-budget", "much"), "`much` is not an amount of memory", "for example `8GB`"),
        (("--memory-budget", "1MB"), "where the memory limit allows 1 MB; the most goes to weights", "smaller"),
    ],
)
def test_an_invalid_archive_is_one_sentence(
    llrag: Llrag, tmp_path: Path, arguments: tuple[str, ...], problem: str, hint: str
) -> None:
    done = llrag("generate", PROMPT, *arguments)
    assert done.returncode in (1, 2)
    assert problem in done.stderr.split("hint: ")[0]
    assert hint in done.stderr.split("hint: ")[1]
    assert not (tmp_path / "runs").exists()


def test_a_budget_that_costs_exactness_is_a_warning(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.planning.free_disk", lambda folder: 10**6)
    done = llrag("generate", PROMPT, "--seconds", "30", "--memory-budget", "22MB", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["archive"]["tier"] == "host-int8"
    assert "no exact archive fits: the archive is kept in eight bits (`host-int8`)" in done.stderr


def test_the_doctor_shows_the_plan_of_every_archive(llrag: Llrag) -> None:
    done = llrag("doctor", "--backbone", "self-forcing", "--seconds", "3600", "--rag", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert "4.15 TB" in done.stdout and "archive of latents" in done.stdout
    assert "device, host, disk give the same video" in done.stdout
    done = llrag("doctor", "--backbone", "tiny", "--no-rag", "--json")
    assert list(json.loads(done.stdout)["archives"]) == ["no archive"]


def test_same_seed_same_video(llrag: Llrag, tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        done = llrag("generate", PROMPT, "--seconds", "1", "--seed", seed, "--out", name)
        assert done.returncode == 0, done.stderr
    first, second, other = ((tmp_path / name / "video.mp4").read_bytes() for name in "abc")
    assert first == second
    assert first != other


def test_half_precision_runs_without_a_warning(llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("generate", PROMPT, "--seconds", "1", "--dtype", "bfloat16", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "float32" not in done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["dtype"] == "bfloat16"


def test_memory_and_encoder_are_chosen_and_recorded(llrag: Llrag, tmp_path: Path) -> None:
    few = ("--seconds", "14", "--set", "sampler.steps=[1000, 500]")
    retrieved = {}
    for name, options in {
        "plain": (),
        "sink": ("--memory", "deep-sink"),
        "own": ("--encoder", "own.safetensors"),
    }.items():
        if name == "own":
            torch.manual_seed(0)
            encoder = LatentAutoencoder(
                EncoderConfig(in_channels=8, spatial_h=8, spatial_w=8, latent_dim=4, hidden_dims=(4,))
            )
            save_file(encoder.state_dict(), "own.safetensors", metadata={"config": encoder.config.model_dump_json()})
        done = llrag("generate", PROMPT, *few, *options, "--out", name)
        assert done.returncode == 0, done.stderr
        memory = json.loads((tmp_path / name / "run.json").read_text())["config"]["memory"]
        assert memory["strategy"] == ("deep-sink" if name == "sink" else "nearest")
        if name == "own":
            assert memory["keys"] == "encoder" and memory["encoder"] == str(tmp_path / "own.safetensors")
        last = (tmp_path / name / "memory.jsonl").read_text().splitlines()[-1]
        retrieved[name] = json.loads(last)
    assert retrieved["sink"]["retrieved"] == [1, 2, 3, 4]
    assert retrieved["own"]["similarities"] != retrieved["plain"]["similarities"]


def test_an_existing_run_is_kept_unless_forced(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    refused = llrag("generate", PROMPT, "--seconds", "1", "--out", "run")
    assert refused.returncode == 2
    assert refused.stderr.endswith(
        "error: `run` exists and is not empty\n\n"
        "hint: choose another `--out`, or add `--force`: files that do not belong to a run are left alone\n"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    forced = llrag("generate", PROMPT, "--seconds", "1", "--out", "run", "--force")
    assert forced.returncode == 0, forced.stderr
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem", "hint"),
    [
        (("generate",), "a prompt is missing", "for example `llrag generate"),
        (("generate", "  "), "the prompt is empty", "describe in a sentence"),
        (("generate", "x", "--prompts", "p.txt"), "a prompt and `--prompts` cannot be combined", "for example"),
        (("generate", "--prompts", "no.txt"), "no prompt file `no.txt`", "one prompt per line"),
        (("generate", "--prompts", "empty.txt"), "`empty.txt` contains no prompt", "one prompt per line"),
        (("generate", "--prompts", "bytes.txt"), "`bytes.txt` cannot be read: it is not UTF-8", "text file"),
        (("generate", "x", "--seconds", "0"), "a video cannot last 0 seconds", "more than 0"),
        (("generate", "x", "--seconds", "-3"), "a video cannot last -3 seconds", "more than 0"),
        (("generate", "x", "--seconds", "nan"), "a video cannot last nan seconds", "more than 0"),
        (("generate", "x", "--backbone", "tinny"), "unknown preset `tinny`", "did you mean `tiny`?"),
        (("generate", "x", "--set", "memory.sinks=1"), "unknown setting `memory.sinks`", "did you mean `memory.sink`?"),
        (("generate", "x", "--backbone", "no.yaml"), "no such file: `no.yaml`", "a bundled preset, or a YAML file"),
        (("generate", "a circle", "--device", "cuda:7"), "unknown device `cuda:7`", "this machine has `cpu`"),
        (("generate", "a circle", "--device", "meta"), "the device `meta` computes nothing", "use `cpu`"),
        (("generate", "x", "--device", "warp"), "unknown device `warp`", "`auto`, `cpu`, `cuda`"),
        (("generate", "x", "--dtype", "float13"), "unknown dtype `float13`", "did you mean `float"),
        (("generate", "x", "--out", "a-file/run"), "`a-file/run` cannot be written: not a directory", "--out"),
        (("generate", "x", "--memory", "nearst"), "unknown memory strategy `nearst`", "did you mean `nearest`?"),
        (
            ("generate", "x", "--memory", "random", "--no-rag"),
            "`--no-rag` and `--memory random` contradict each other",
            "give one of them",
        ),
        (("generate", "x", "--memory", "none", "--rag"), "the memory strategy of `tiny` is `none`", "--memory nearest"),
        (
            ("generate", "x", "--encoder", "no.safetensors"),
            "no such file: `no.safetensors`",
            "`llrag train-encoder`",
        ),
        (("collect", "p.txt", "--out", "o", "--memory", "nearst"), "unknown memory strategy `nearst`", "`nearest`?"),
        (("presets", "show", "tinny"), "unknown preset `tinny`", "did you mean `tiny`?"),
        (("verify", "nowhere"), "no such folder: `nowhere`", "golden vectors"),
    ],
)
def test_invalid_requests_are_usage_errors(
    llrag: Llrag, tmp_path: Path, arguments: tuple[str, ...], problem: str, hint: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "a-file").write_text("")
    (tmp_path / "p.txt").write_text("a red circle\n")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    done = llrag(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert problem in done.stderr
    assert hint in done.stderr.split("hint: ")[1]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_missing_weights_are_named_before_any_work(
    llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(tmp_path / "w"))
    done = llrag("generate", "x", "--backbone", "self-forcing")
    assert done.returncode == 1
    assert "the weights of `self-forcing` are incomplete" in done.stderr
    assert "self_forcing.pt` does not exist (setting `backbone.weights`)" in done.stderr
    assert list(tmp_path.iterdir()) == []


@contextmanager
def long_run(starter: Starter, folder: Path, *, blocks: int) -> Iterator[Started]:
    """A process that has made some blocks of a video that would take it hours."""
    command = ("generate", PROMPT, "--seconds", "3000", "--out", "run", "--set", "sampler.steps=[1000]")
    with starter.start(folder, *command) as process:
        memory = folder / "run/memory.jsonl"
        wait_until(lambda: memory.exists() and len(memory.read_text().splitlines()) >= blocks, process)
        yield process


def test_an_interrupt_leaves_a_playable_video_and_names_the_command_that_continues(
    starter: Starter, tmp_path: Path
) -> None:
    with long_run(starter, tmp_path, blocks=8) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
        _, stderr = process.said()
    assert "Traceback" not in stderr
    assert "stopped; `llrag generate --resume run` continues from here" in " ".join(stderr.split())
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "interrupted"
    assert len(read_video(tmp_path / "run/video.mp4")) == record["video_frames_written"] >= 8 * 12 - 3


def test_a_killed_run_leaves_a_playable_video_that_does_not_claim_to_be_complete(
    starter: Starter, tmp_path: Path
) -> None:
    with long_run(starter, tmp_path, blocks=12) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "running"
    assert len(read_video(tmp_path / "run/video.mp4")) >= 60


def test_presets_are_listed_and_shown(llrag: Llrag, tmp_path: Path) -> None:
    listed = llrag("presets")
    assert listed.returncode == 0
    table, _, checked = listed.stdout.partition("\nchecked:\n")
    assert "  causal-forcing, longlive, self-forcing: vectors of LongLive-RAG at small size" in checked
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [
        [name, "none" if name == "self-gradient-forcing-framewise" else "nearest"] for name in preset_names()
    ]
    shown = llrag("presets", "show", "longlive", "--no-rag", "--json")
    assert json.loads(shown.stdout)["memory"]["window"] == 12
    mine = llrag("presets", "show", "longlive", "--set", "memory.retrieved=4")
    assert "lora: longlive_lora.pt" in mine.stdout
    (tmp_path / "mine.yaml").write_text(mine.stdout)
    again = llrag("presets", "show", "mine.yaml")
    assert again.stdout == mine.stdout


def test_verify_exits_1_when_a_number_is_off(llrag: Llrag, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from llrag_cli.parity import BUNDLED

    tensors = load_file(BUNDLED / "scheduler.safetensors")
    (tmp_path / "scheduler.json").write_text((BUNDLED / "scheduler.json").read_text())
    save_file(tensors, tmp_path / "scheduler.safetensors")
    right = llrag("verify", ".")
    assert right.returncode == 0, right.stderr
    assert "20 of 20 quantities within tolerance on cpu, float32" in right.stdout
    tensors["shift8.flow_to_x0"] += 0.1
    save_file(tensors, tmp_path / "scheduler.safetensors")
    wrong = llrag("verify", ".")
    assert wrong.returncode == 1
    assert "FAILED" in wrong.stdout
    assert "19 of 20" in wrong.stdout
