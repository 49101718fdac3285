"""``llrag decode``: the video of a run is made again from its latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import Llrag
from llrag_cli.config import RunConfig
from llrag_cli.models.embedded.model import load_vae, weights_folder
from llrag_cli.models.embedded.vae import TinyDecoder
from llrag_cli.models.vae import DecoderStream
from llrag_cli.runs.decode import decode_run
from llrag_cli.runs.folder import RunFolder

FEW = ("--set", "sampler.steps=[1000]")


@pytest.fixture
def run(llrag: Llrag, tmp_path: Path) -> RunFolder:
    """A video of two shots, with a cut between them that falls inside a segment of the video."""
    done = llrag("generate", "a red circle", "--then", "cut 3s: a blue square", "--seconds", "3", *FEW, "--out", "run")
    assert done.returncode == 0, done.stderr
    return RunFolder(tmp_path / "run")


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != "run.lock"}


def test_a_lost_or_damaged_video_is_made_again(llrag: Llrag, run: RunFolder) -> None:
    before = contents(run)
    for killed in ("video.mp4.123.partial", "video.mp4.123.123.part.mp4"):
        (run.path / killed).write_bytes(b"half")
    run.video.write_bytes(before["video.mp4"][:-5000] + bytes(5000))
    assert run.video_has_changed(run.read_record())
    done = llrag("decode", "run")
    assert (done.returncode, done.stdout) == (0, "run/video.mp4\n"), done.stderr
    after = contents(run)
    assert after.keys() == before.keys()
    for name in ("video.mp4", "latents.safetensors", "memory.jsonl"):
        assert after[name] == before[name], name
    assert json.loads(after["run.json"]) == json.loads(before["run.json"])
    assert "already complete" in llrag("generate", "--resume", "run").stderr
    longer = llrag("extend", "run", "--seconds", "1")
    assert longer.returncode == 0 and "changed" not in longer.stderr, longer.stderr  # the marks are of the new video
    assert (
        run.video.read_bytes()[: len(before["video.mp4"]) // 2] == before["video.mp4"][: len(before["video.mp4"]) // 2]
    )


class Stuck(TinyDecoder):
    """A decoder that fails at its third block."""

    def stream(self) -> DecoderStream:
        inner, calls = super().stream(), iter((1, 2))

        class Stream:
            def decode(self, latents: torch.Tensor) -> torch.Tensor:
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return inner.decode(latents)

        return Stream()


def test_a_decoded_run_is_told_block_by_block(run: RunFolder) -> None:
    told: list[int] = []
    record = run.read_record()
    decoder = TinyDecoder(load_vae(weights_folder() / "vae.safetensors"))
    made = decode_run(run, record.config, decoder, device=torch.device("cpu"), on_block=told.append)
    assert told == [*range(1, run.blocks_committed() + 1)]
    assert made == run.read_record() and made.video_frames_written == record.video_frames_written


def test_until_the_end_an_interruption_changes_nothing(run: RunFolder) -> None:
    before = contents(run)
    config: RunConfig = run.read_record().config
    decoder = Stuck(load_vae(weights_folder() / "vae.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        decode_run(run, config, decoder, device=torch.device("cpu"))
    assert contents(run) == before


def test_what_cannot_be_decoded_is_refused(llrag: Llrag, tmp_path: Path, run: RunFolder) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_bytes(run.record.read_bytes())
    before = contents(run)
    for arguments, message in (
        (("run", "--decoder", "tiny"), "error: `video.decoder` is `tiny`, but the embedded model has one decoder"),
        (("run", "--decoder", "full-size"), "error: unknown decoder `full-size`"),
        (("nowhere",), "error: no run folder `nowhere`"),
        (("empty",), "error: `empty` has no latents yet"),
    ):
        done = llrag("decode", *arguments)
        assert done.returncode == 2 and message in done.stderr and "hint: " in done.stderr
    assert contents(run) == before and {path.name for path in (tmp_path / "empty").iterdir()} == {"run.json"}
