"""Training the retrieval encoder: what it is given, what it leaves, and that interruptions change nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import Llrag
from llrag_cli import LlragError, UsageError
from llrag_cli.memory.encoder import load_encoder
from llrag_cli.runs.latents import LatentFolder
from llrag_cli.training.encoder.config import EncoderTraining
from llrag_cli.training.encoder.data import LatentPool, batches
from llrag_cli.training.encoder.folder import TrainingFolder
from llrag_cli.training.encoder.trainer import EncoderTrainer

SMALL = EncoderTraining(
    latent_dim=8, hidden_dims=(8,), chunk=4, chunks_per_video=2, batch=4, epochs=4, learning_rate=1e-3, eval_every=2
)
OPTIONS = ["--preset", "tiny", "--set", "hidden_dims=[8]", "--set", "latent_dim=8", "--set", "batch=4", "--epochs", "2"]
SHAPE = (3, 6, 6)


def video(number: int, frames: int = 40) -> Tensor:
    """A bright spot that goes round, in a channel of its own: [F, C, H, W]."""
    time = 0.2 * torch.arange(frames)[:, None, None] + number
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    spot = torch.exp(-((x - 2.5 - 2 * time.cos()) ** 2 + (y - 2.5 - 2 * time.sin()) ** 2))
    frames_ = 0.1 * torch.randn(frames, *SHAPE, generator=torch.Generator().manual_seed(number))
    frames_[:, number % 3] += 3 * spot
    return frames_


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    folder = LatentFolder(tmp_path / "latents")
    folder.begin({"for": "tests"})
    for number in range(6):
        folder.write(number, video(number), {"number": number})
    return folder.path


def train(latents: Path, out: Path, *, epochs: int = 4, resume: bool = False, stop_after: int = 99) -> TrainingFolder:
    folder = TrainingFolder(out)
    folder.create(resume=resume, force=False)
    training = SMALL.model_copy(update={"epochs": epochs})
    trainer = EncoderTrainer(LatentPool(latents), training, folder, device="cpu", resume=resume)

    def stop(record: Any) -> None:
        if record["epoch"] == stop_after:
            raise KeyboardInterrupt

    trainer.run(stop)
    return folder


def test_it_learns_and_leaves_everything_behind(latents: Path, tmp_path: Path) -> None:
    folder = train(latents, tmp_path / "encoder.safetensors")
    records = folder.records()
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["train"]["total"] < records[0]["train"]["total"]
    assert [record["epoch"] for record in records if "retrieval" in record] == [1, 2, 4]
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    page = folder.summary.read_text(encoding="utf-8")
    assert "best epoch" in page and "data:image/png;base64," in page
    encoder = load_encoder(folder.out)
    keys = encoder(video(0))
    assert keys.shape == (40, 8)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(40))


def test_interrupted_and_uninterrupted_trainings_end_alike(latents: Path, tmp_path: Path) -> None:
    whole = train(latents, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(latents, tmp_path / "parts.safetensors", stop_after=1)
    train(latents, tmp_path / "parts.safetensors", epochs=3, resume=True)
    parts = train(latents, tmp_path / "parts.safetensors", resume=True)
    kept = [torch.load(folder.state, weights_only=True) for folder in (whole, parts)]
    assert kept[0]["epoch"] == kept[1]["epoch"] == 4
    for name, value in kept[0]["model"].items():
        assert torch.equal(value, kept[1]["model"][name]), name
    for name, value in load_file(whole.out).items():
        assert torch.equal(value, load_file(parts.out)[name]), name
    timeless = [[{**record, "seconds": 0} for record in folder.records()] for folder in (whole, parts)]
    for one, other in zip(*timeless, strict=True):
        one.pop("retrieval", None), other.pop("retrieval", None)  # the third epoch was once the last, and was evaluated
        assert one == other


def test_a_training_killed_before_its_last_report_writes_it_on_resume(latents: Path, tmp_path: Path) -> None:
    folder = train(latents, tmp_path / "encoder.safetensors", epochs=2)
    page = folder.summary.read_text(encoding="utf-8")
    folder.curves.unlink()
    folder.summary.write_text("of an earlier epoch", encoding="utf-8")
    train(latents, folder.out, epochs=2, resume=True)
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
    assert folder.summary.read_text(encoding="utf-8") == page
    folder.out.unlink()
    with pytest.raises(LlragError, match=r"encoder\.safetensors` is missing: the best encoder, of epoch \d"):
        train(latents, folder.out, epochs=2, resume=True)


def test_another_training_is_not_gone_on_with(latents: Path, tmp_path: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    train(latents, out, epochs=1)
    with pytest.raises(UsageError, match="has been trained before, at least in part"):
        train(latents, out)
    folder = TrainingFolder(out)
    other = SMALL.model_copy(update={"delta_margin": 0.5})
    with pytest.raises(UsageError, match=r"started with another `delta_margin`: 0\.85"):
        EncoderTrainer(LatentPool(latents), other, folder, device="cpu", resume=True)


def test_a_full_disk_leaves_the_last_good_state(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "encoder.safetensors"
    train(latents, out, epochs=2)
    before = torch.load(TrainingFolder(out).state, weights_only=True)

    def full(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LlragError, match=r"last.pt` could not be written: no space left"):
        train(latents, out, resume=True)
    monkeypatch.undo()
    after = torch.load(TrainingFolder(out).state, weights_only=True)
    assert after["epoch"] == before["epoch"] == 2
    assert not list(tmp_path.rglob("*.partial"))
    whole = train(latents, tmp_path / "whole.safetensors")
    resumed = train(latents, out, resume=True)
    assert torch.equal(*(load_file(folder.out)["encoder.fc.weight"] for folder in (whole, resumed)))


def test_two_processes_agree_with_one(latents: Path, tmp_path: Path) -> None:
    alone = [sys.executable, "-m", "llrag_cli"]
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    # three features to a group: with one, what goes into a group norm has no gradient but rounding
    arguments = ["train-encoder", "--latents", str(latents), "--device", "cpu", *OPTIONS, "--set", "hidden_dims=[12]"]
    results = []
    for name, launch in (("alone", alone), ("together", [*together, "-m", "llrag_cli"])):
        out = tmp_path / f"{name}.safetensors"
        done = subprocess.run([*launch, *arguments, "--out", str(out)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]  # of torch before 2.9
        assert said == [str(out)]  # one process speaks
        results.append((load_file(out), TrainingFolder(out).records()))
    (one, records), (two, other_records) = results
    assert json.loads((tmp_path / "together.training/config.json").read_text())["processes"] == 2
    for name, value in one.items():
        assert (value - two[name]).abs().max() < 5e-4, name
    for record, other in zip(records, other_records, strict=True):
        assert record["train"] == pytest.approx(other["train"], rel=1e-4)


def test_examples_are_the_epoch_s_and_parts_make_up_the_whole(latents: Path) -> None:
    pool = LatentPool(latents)
    learnt, held_out = pool.split(validation=0.2, seed=0)
    assert sorted(learnt + held_out) == list(range(6)) and len(held_out) == 1
    first, again, later = (pool.drawn(learnt, chunk=4, per_video=3, seed=0, epoch=epoch) for epoch in (1, 1, 2))
    assert first == again != later
    assert {example.video for example in first} == set(learnt)
    whole = list(batches(pool, first, chunk=4, batch=4))
    assert sum(len(part) for part, _ in whole) == len(first) == 15
    for count in (2, 3, 4):
        parts = [list(batches(pool, first, chunk=4, batch=4, process=(index, count))) for index in range(count)]
        assert all(len(part) > 0 for process in parts for part, _ in process)
        assert [sum(len(process[step][0]) for process in parts) for step in range(len(parts[0]))] == [
            size for _, size in parts[0]
        ]
        assert sum(size for _, size in parts[0]) == 15


def test_a_chunk_longer_than_a_video_repeats_its_last_frame(latents: Path) -> None:
    pool = LatentPool(latents)
    example = pool.drawn([2], chunk=50, per_video=1, seed=0, epoch=1)[0]
    chunk = pool.chunk(example, 50)
    assert chunk.shape == (50, *SHAPE)
    assert torch.equal(chunk[:40], video(2)) and torch.equal(chunk[40:], video(2)[-1:].expand(10, *SHAPE))


def test_the_original_s_files_are_read(latents: Path, llrag: Llrag) -> None:
    for number in (0, 1):
        (latents / f"latent_{number:06d}.safetensors").unlink()
        torch.save(video(number)[None], latents / f"latent_{number:06d}.pt")
    done = llrag("train-encoder", "--latents", str(latents), "--out", "e.safetensors", "--device", "cpu", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "e.safetensors\n"
    assert "5 videos for training, 1 for validation, latents of 3x6x6 to 8, preset `tiny`" in done.stderr


def test_short_videos_are_said(latents: Path, llrag: Llrag) -> None:
    LatentFolder(latents).write(9, video(9, frames=5), {})
    done = llrag(
        "train-encoder", "--latents", str(latents), "--out", "e.safetensors", "--device", "cpu", *OPTIONS, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert "1 video shorter than a chunk of 8 frames" in " ".join(done.stderr.split())
    told = json.loads(done.stdout)
    assert told["encoder"] == "e.safetensors" and math.isfinite(told["validation"]["total"])


def nan_file(folder: Path) -> None:
    save_file({"latents": torch.full((9, *SHAPE), torch.nan)}, folder / "latent_000004.safetensors")


def other_shape(folder: Path) -> None:
    save_file({"latents": torch.zeros(9, 3, 6, 8)}, folder / "latent_000007.safetensors")


def damaged(folder: Path) -> None:
    (folder / "latent_000003.safetensors").write_bytes(b"half a file")


def one_video(folder: Path) -> None:
    for number in range(1, 6):
        (folder / f"latent_{number:06d}.safetensors").unlink()


def no_video(folder: Path) -> None:
    one_video(folder)
    (folder / "latent_000000.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nan_file, "latent_000004.safetensors` contains values that are not finite"),
        (other_shape, "latent_000007.safetensors` holds latents of 3x6x8, others of 3x6x6"),
        (damaged, "latent_000003.safetensors` cannot be read"),
        (one_video, "there is one video in"),
        (no_video, "there are no latents in"),
    ],
)
def test_bad_latents_are_named(latents: Path, llrag: Llrag, spoil: Any, said: str) -> None:
    spoil(latents)
    done = llrag("train-encoder", "--latents", str(latents), "--out", "e.safetensors", *OPTIONS)
    assert done.returncode in (1, 2)
    assert said in done.stderr and "hint: " in done.stderr and "Traceback" not in done.stderr
    assert not Path("e.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "wam"], "unknown training preset `wam`"),
        (["--set", "epoch=3"], "unknown setting `epoch`"),
        (["--set", "epochs"], "`epochs` is not KEY=VALUE"),
        (["--epochs", "0"], "`epochs`: input should be greater than or equal to 1, not `0`"),
        (["--precision", "fp8"], "unknown precision `fp8`"),
        (["--track", "mlflow"], "unknown tracker `mlflow`"),
        (["--device", "tpu"], "unknown device `tpu`"),
        (["--out", "encoder.pt"], "`encoder.pt` is not a name for an encoder"),
        (["--latents", "nowhere"], "there are no latents in `nowhere`"),
    ],
)
def test_bad_options_get_a_sentence(latents: Path, llrag: Llrag, options: list[str], said: str) -> None:
    done = llrag("train-encoder", "--latents", str(latents), "--out", "e.safetensors", *options)
    assert done.returncode == 2
    assert said in done.stderr and "hint: " in done.stderr


def test_a_tracker_that_is_not_installed_is_said(latents: Path, llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.training.encoder.trainer.is_tensorboard_available", lambda: False)
    done = llrag("train-encoder", "--latents", str(latents), "--out", "e.safetensors", "--track", "tensorboard")
    assert done.returncode == 1
    assert "`tensorboard` is not installed\n\nhint: `pip install tensorboard`" in done.stderr
