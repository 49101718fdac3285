"""From an empty cache to first frames: the two commands a user types, against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5EncoderModel

from conftest import GOLDENS, Llrag
from hub import Hub
from llrag_cli import LlragError, Pipeline, RunFolder, load_config, make_video, read_video, resume_video
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.cli.hints import hint_for
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import memory_plan, schedule_of
from llrag_cli.engine.rollout import rollout
from llrag_cli.errors import LlragWarning
from llrag_cli.files.image import read_image
from llrag_cli.files.tensors import read_metadata
from llrag_cli.memory.history import History
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.layouts import Layout
from llrag_cli.models.wan.base import ORIGINAL_TEXT, ORIGINAL_VAE, WanBase
from llrag_cli.models.wan.family import TINY_DECODER
from llrag_cli.models.wan.text import WanText, load_text_encoder, umt5_from, umt5_name
from llrag_cli.models.wan.tiny_decoder import TinyWanNetwork
from llrag_cli.models.wan.vae import WanDecoder, load_vae
from llrag_cli.parity.generation import RecordedNoise
from official import HEIGHT, WIDTH, official_repos, save_tokenizer, umt5

SMALL = (f"backbone.height={HEIGHT}", f"backbone.width={WIDTH}")
SMALL_OPTIONS = [part for setting in SMALL for part in ("--set", setting)]
BACKBONES = ("self-forcing", "causal-forcing", "longlive")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(official_repos(tmp_path_factory.mktemp("official"))) as running:
        yield running


@pytest.fixture(scope="module")
def weights(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, downloaded in float32 by the program itself in a process of its own."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "LLRAG_WEIGHTS": str(home / "w")}
    done = subprocess.run(
        [sys.executable, "-m", "llrag_cli", "download", "weights", "all", "--dtype", "float32"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(home / "w")
    return home / "w"


def golden(case: str) -> dict[str, Tensor]:
    return load_file(GOLDENS / f"{case}.safetensors")


@pytest.mark.parametrize(
    ("backbone", "memory", "case"),
    [
        ("self-forcing", "none", "native_w12_s1_b3"),
        ("self-forcing", "nearest", "rag_ae_w12_s1_k6_r5_b3"),
        ("causal-forcing", "none", "native_w12_s1_b3"),
        ("causal-forcing", "nearest", "rag_ae_w12_s1_k6_r5_b3"),
    ],
)
def test_downloaded_backbones_write_the_golden_latents(weights: Path, backbone: str, memory: str, case: str) -> None:
    """The bundled preset, only made as small as the golden latents, writes what the original system wrote."""
    config = load_config(backbone, memory=memory, settings=SMALL)
    pipeline = Pipeline.load(config, device="cpu", dtype="float32", weights=weights)
    written = rollout_of(pipeline, golden(case)["latents"].shape[1])
    assert (written - golden(case)["latents"]).abs().max() < 1e-4


@pytest.mark.parametrize("memory", ["none", "nearest"])
def test_longlive_writes_the_golden_latents_with_its_lora(weights: Path, memory: str) -> None:
    name = {"none": "native", "nearest": "rag"}[memory]
    alpha = json.loads((GOLDENS / "lora_output.json").read_text())["alpha"]["lora"]
    settings = [*SMALL, f"backbone.lora_alpha={alpha}"]
    if memory == "nearest":  # as it was recorded
        settings += ["memory.window=9", "memory.retrieved=2", "memory.guard=1", "memory.keys=average"]
    config = load_config("longlive", memory=memory, settings=settings)
    pipeline = Pipeline.load(config, device="cpu", dtype="float32", weights=weights)
    expected = golden("lora_output")[f"generation_{name}.latents"]
    assert (rollout_of(pipeline, expected.shape[1]) - expected).abs().max() < 1e-4


def rollout_of(pipeline: Pipeline, frames: int) -> Tensor:
    """Latents [1, F, C, h, w] of the golden inputs, from a loaded pipeline."""
    inputs, config, memory = golden("inputs"), pipeline.config, pipeline.config.memory
    if isinstance(memory, RetrievalMemory) and memory.archive == "auto":
        memory = memory.model_copy(update={"archive": "host"})
    blocks = rollout(
        pipeline.backbone,
        inputs["prompt_embeds"][:1],
        frames=frames,
        shape=(16, HEIGHT, WIDTH),
        block=config.backbone.frames_per_block,
        schedule=schedule_of(config),
        memory=memory,
        history=History(pipeline.encode_key),
        noise=RecordedNoise(inputs["noise"], inputs["renoise"]),
    )
    return torch.cat([block.latents for block in blocks], dim=1)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rag", ["--rag", "--no-rag"])
def test_generate_from_downloaded_weights(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, rag: str
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    arguments = ["--backbone", backbone, rag, "--seconds", "2", "--out", "run", *SMALL_OPTIONS]
    done = llrag("generate", "a cat", *arguments)
    assert done.returncode == 0, done.stderr
    assert "memory: " in done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "complete"
    assert len(read_video(tmp_path / "run/video.mp4")) == record["video_frames"]


def test_missing_weights_name_the_command(llrag: Llrag) -> None:
    done = llrag("generate", "a cat", "--backbone", "longlive")
    assert done.returncode == 1
    assert "`llrag download weights longlive` fetches them" in done.stderr


def test_weights_rounded_at_download_are_said_so(
    weights: Path, tmp_path: Path, llrag: Llrag, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llrag_cli.download.convert import convert

    folder = tmp_path / "w"
    folder.mkdir()
    for file in weights.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "self_forcing.safetensors").unlink()
    state = load_file(weights / "self_forcing.safetensors")
    torch.save({"generator_ema": state}, tmp_path / "original.pt")
    convert(tmp_path / "original.pt", folder / "self_forcing.safetensors", kind="generator", ema=True, dtype="bfloat16")
    config = load_config("self-forcing", memory="none", settings=SMALL)
    with pytest.warns(LlragWarning, match="was rounded to bfloat16 when it was downloaded"):
        Pipeline.load(config, device="cpu", dtype="float32", weights=folder)
    Pipeline.load(config, device="cpu", dtype="bfloat16", weights=folder)  # warnings fail tests
    monkeypatch.setenv("LLRAG_WEIGHTS", str(folder))
    done = llrag("generate", "a cat", "--backbone", "self-forcing", "--no-rag", "--seconds", "0.5", *SMALL_OPTIONS)
    assert "warning: " in done.stderr and "was rounded to bfloat16" in done.stderr.replace("\n", " ")


# --- image to video ---------------------------------------------------------------------------------


def picture(path: Path) -> Path:
    pixels = torch.zeros(40, 60, 3, dtype=torch.uint8)
    pixels[:, 30:] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.mark.parametrize("backbone", ["causal-forcing-framewise", "causal-forcing-2step", "causal-forcing-1step"])
def test_a_picture_opens_the_video(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    image = picture(tmp_path / "start.png")
    arguments = ["--backbone", backbone, "--image", str(image), "--seconds", "1", "--out", "run", *SMALL_OPTIONS]
    done = llrag("generate", "a cat", *arguments)
    assert done.returncode == 0, done.stderr
    (shot,) = json.loads((tmp_path / "run/run.json").read_text())["timeline"]["shots"]
    assert (shot["image"], shot["given_blocks"]) == (str(image), 1)
    config = load_config(backbone, memory="nearest", settings=SMALL)
    pipeline = Pipeline.load(config, device="cpu", weights=weights)
    first, second = list(pipeline.start("a cat", seconds=0.2, image=image))[:2]
    frame = read_image(image, size=(config.height, config.width))
    assert torch.equal(first.latents, pipeline.decoder.encode(frame[None]))
    assert not torch.equal(first.latents, second.latents)


def test_a_video_that_starts_from_a_picture_resumes_to_the_same_bytes(weights: Path, tmp_path: Path) -> None:
    """The picture's frame alone is given: the others were generated, with noise in their clean pass."""
    image = picture(tmp_path / "start.png")
    settings = [*SMALL, "sampler.context_timestep=100", "memory.window=6", "memory.retrieved=2", "memory.guard=1"]
    pipeline = Pipeline.load(
        load_config("causal-forcing-2step", settings=settings), device="cpu", weights=weights, dtype="float32"
    )
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    make_video(pipeline, "a cat", whole, seconds=3, image=image)
    make_video(pipeline, "a cat", parts, seconds=1, image=image)
    record = resume_video(pipeline, parts, seconds=3)
    assert record.resumed_at == (5,)
    for name in ("latents.safetensors", "memory.jsonl"):
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_preview_becomes_the_final_video(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated with the small decoder, decoded with the full one: the same bytes as generated with that."""
    own = tmp_path / "weights"
    own.mkdir()
    for path in weights.iterdir():
        (own / path.name).symlink_to(path)
    torch.manual_seed(0)
    command = ["a cat", "--backbone", "self-forcing", "--no-rag", *SMALL_OPTIONS, "--seconds", "2"]
    monkeypatch.setenv("LLRAG_WEIGHTS", str(own))
    without = llrag("generate", *command, "--decoder", "tiny", "--out", "preview")
    assert without.returncode == 1 and "taew2_1.safetensors` does not exist" in without.stderr
    assert "`llrag download weights tiny-decoder` fetches" in without.stderr
    save_file({name: value.half() for name, value in TinyWanNetwork().state_dict().items()}, own / TINY_DECODER)
    for out, options in (("preview", ["--decoder", "tiny"]), ("final", [])):
        done = llrag("generate", *command, *options, "--out", out)
        assert done.returncode == 0, done.stderr
    preview, final = RunFolder(tmp_path / "preview"), RunFolder(tmp_path / "final")
    assert preview.latents.read_bytes() == final.latents.read_bytes()
    shapes = [read_video(folder.video).shape for folder in (preview, final)]
    assert shapes[0] == shapes[1] and preview.video.read_bytes() != final.video.read_bytes()
    done = llrag("decode", "preview")
    assert done.returncode == 0, done.stderr
    for name in ("video.mp4", "latents.safetensors", "memory.jsonl"):
        assert (preview.path / name).read_bytes() == (final.path / name).read_bytes(), name
    assert preview.read_record().config == final.read_record().config
    done = llrag("decode", "preview", "--decoder", "tiny")
    assert done.returncode == 0 and preview.read_record().config.video.decoder == "tiny"

    usual = read_video(final.video).float()
    final.write_record(final.read_record().updated(decoder_layout="channels_last_3d"))
    layouts: list[str] = []
    monkeypatch.setattr(WanDecoder, "set_layout", _noting(layouts, WanDecoder.set_layout))
    for step, (arguments, seconds) in enumerate(((["decode"], 2), (["extend", "--seconds", "1"], 3)), start=1):
        done = llrag(arguments[0], "final", *arguments[1:])
        assert done.returncode == 0 and "was begun" not in done.stderr, done.stderr
        assert layouts == step * ["channels_last_3d"]  # it is decoded in this one
        record = final.read_record()
        assert (record.decoder_layout, record.seconds) == ("channels_last_3d", seconds)
        assert (read_video(final.video)[: len(usual)].float() - usual).abs().max() < 0.05


def _noting(layouts: list[str], set_layout: Callable[[WanDecoder, Layout], None]) -> Callable[..., None]:
    def noted(decoder: WanDecoder, layout: Layout) -> None:
        layouts.append(layout)
        set_layout(decoder, layout)

    return noted


def test_pictures_that_cannot_be(llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("generate", "a red circle", "--image", str(picture(tmp_path / "start.png")))
    assert done.returncode == 2
    assert "blocks of 3 latent frames, so it cannot start from one picture" in done.stderr
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("text.png", "it is not an image"), ("none.png", "does not exist")):
        options = ["--backbone", "causal-forcing-framewise", "--image", str(tmp_path / name)]
        done = llrag("generate", "a cat", *options)
        assert done.returncode == 2
        assert said in done.stderr


# --- how it is run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [Execution(offload=True), Execution(attention="_native_math"), Execution(compile=True)], ids=str
)
def test_how_it_is_run_does_not_change_the_video(weights: Path, how: Execution) -> None:
    config = load_config("self-forcing", memory="nearest", settings=(*SMALL, "memory.guard=0"))
    plain, other = (
        Pipeline.load(config, device="cpu", dtype="float32", weights=weights, how=each) for each in (Execution(), how)
    )
    assert (rollout_of(plain, 21) - rollout_of(other, 21)).abs().max() < 1e-4


def test_attention_back_ends_that_are_not_there(llrag: Llrag) -> None:
    done = llrag("generate", "a red circle", "--attention", "nativ", "--seconds", "1")
    assert done.returncode == 2
    assert "did you mean `native`?" in done.stderr
    done = llrag("generate", "a red circle", "--attention", "flash", "--seconds", "1")
    assert done.returncode == 1
    assert "the attention backend `flash` does not work here" in done.stderr


# --- memory -----------------------------------------------------------------------------------------


def test_a_run_that_cannot_fit_stops_before_loading(
    weights: Path, llrag: Llrag, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("it was loaded"))
    monkeypatch.setattr("llrag_cli.planning.free_memory", lambda device: 10_000_000)
    done = llrag("generate", "a cat", "--backbone", "self-forcing", "--seconds", "60", *SMALL_OPTIONS)
    assert done.returncode == 1
    assert "error: this run needs" in done.stderr and "the most goes to" in done.stderr
    done = llrag(
        "generate", "a cat", "--backbone", "self-forcing", "--seconds", "60", "--archive", "device", *SMALL_OPTIONS
    )
    assert "the most goes to archive of K/V" in done.stderr
    assert "make a shorter video" in done.stderr
    assert "keep the archive elsewhere with `--archive host-int8` or `--archive disk`" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_plan_is_what_the_caches_take(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("self-forcing", memory="nearest", settings=(*SMALL, "memory.archive=device"))
    budget = memory_plan(config, device="cpu", dtype="float32", seconds=7, weights=weights)
    planned = {part.name: part.bytes for part in budget.parts}
    pipeline = Pipeline.load(config, device="cpu", dtype="float32", weights=weights)
    frames = config.latent_frames(7)
    kept: list[WanKVCache] = []
    monkeypatch.setattr(WanKVCache, "close", lambda cache: kept.append(cache))  # it would free what is counted here
    rollout_of(pipeline, frames)
    (cache,) = kept
    assert planned["archive of K/V"] == cache.bytes
    assert planned["K/V that a block attends to"] == sum(layer.bytes for layer in cache.layers)
    loaded = sum(parameter.numel() * 4 for parameter in pipeline.backbone.transformer.parameters())
    assert planned["weights"] == loaded


def test_the_full_size_plan(llrag: Llrag) -> None:
    """The figures of the design: 288 MB of keys and values a latent frame in bfloat16."""
    shown = llrag("doctor", "--dtype", "bfloat16", "--seconds", "120", "--backbone", "self-forcing", "--json")
    plans = json.loads(shown.stdout)["archives"]
    parts = {part["name"]: part["bytes"] for part in plans["device"]["parts"]}
    assert parts["weights"] == pytest.approx(2 * 1.419e9, rel=0.01)
    assert parts["K/V that a block attends to"] == pytest.approx(12 * 288e6, rel=0.01)
    assert parts["archive of K/V"] == pytest.approx(483 * 288e6, rel=0.01)
    for tier, share, location in (("host", 1.0, "device"), ("host-int8", 0.51, "device"), ("disk", 1.0, "disk")):
        (archive,) = [part for part in plans[tier]["parts"] if part["name"] == "archive of K/V"]
        assert archive["bytes"] == pytest.approx(share * 483 * 288e6, rel=0.01)
        assert archive["location"] == location  # on a CPU the host is the device
    (latents,) = [part for part in plans["recompute"]["parts"] if part["location"] == "disk"]
    assert latents["bytes"] == 483 * 16 * 60 * 104 * 2
    done = llrag("doctor")
    assert done.returncode == 0
    assert "llrag download weights" in done.stdout or "does not fit" in done.stdout


# --- text -------------------------------------------------------------------------------------------


def original_umt5(encoder: UMT5EncoderModel) -> dict[str, Tensor]:
    """A text encoder's tensors under the original names."""
    layers = encoder.config.num_layers
    names = ["token_embedding.weight", "norm.weight"]
    for layer in range(layers):
        names += [f"blocks.{layer}.{part}.weight" for part in ("norm1", "norm2", "pos_embedding.embedding")]
        names += [f"blocks.{layer}.attn.{part}.weight" for part in "qkvo"]
        names += [f"blocks.{layer}.ffn.{part}.weight" for part in ("gate.0", "fc1", "fc2")]
    state = encoder.state_dict()
    return {name: state[umt5_name(name)] for name in names}


def test_the_original_wan_files_serve_where_only_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    save_tokenizer(folder / "google/umt5-xxl")
    torch.save(original_umt5(umt5()), folder / ORIGINAL_TEXT)
    torch.save(load_file(GOLDENS / "weights_vae_tiny.safetensors"), folder / ORIGINAL_VAE)
    (folder / "config.json").write_text(json.dumps({"num_heads": 3}))
    base = WanBase(folder)
    assert base.original
    assert base.missing() == []
    assert base.heads() == 3
    ids = torch.tensor([[2, 3, 1]])
    with torch.no_grad():
        ours, theirs = (model(ids).last_hidden_state for model in (load_text_encoder(base, torch.float32), umt5()))
    assert torch.equal(ours, theirs)
    assert load_vae(base, torch.float32).config.base_dim == 4


def test_the_full_size_text_encoder_maps_one_to_one() -> None:
    manifest = json.loads((GOLDENS / "manifest_umt5_xxl_encoder.json").read_text())
    state = {name: torch.empty(about["shape"], device="meta") for name, about in manifest["tensors"].items()}
    encoder = umt5_from(state, source="manifest")
    assert sum(parameter.numel() for parameter in encoder.parameters()) == manifest["num_parameters"]
    assert encoder.config.num_layers == 24
    del state["blocks.7.attn.k.weight"]
    with pytest.raises(LlragError, match=r"lacks `encoder\.block\.7"):
        umt5_from(state, source="manifest")


def test_prompts_are_encoded_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = WanBase(weights / "Wan2.1-T2V-1.3B-Diffusers")
    first = WanText(base, cache=tmp_path / "prompts").encode(["a cat", "a"])
    assert first.shape == (2, 512, 32)
    monkeypatch.setattr("llrag_cli.models.wan.text.load_text_encoder", lambda *_: pytest.fail("it was loaded again"))
    assert torch.equal(WanText(base, cache=tmp_path / "prompts").encode(["a", "a cat"]), first.flip(0))
    for file in (tmp_path / "prompts").iterdir():
        file.write_bytes(b"half")
    monkeypatch.undo()
    assert torch.equal(WanText(base, cache=tmp_path / "prompts").encode(["a cat", "a"]), first)


@pytest.mark.parametrize("shape", [None, (3,), (3, 32, 2), (3, 31), (513, 32), (0, 32)])
def test_an_embedding_that_was_changed_is_encoded_again(
    weights: Path, tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    base = WanBase(weights / "Wan2.1-T2V-1.3B-Diffusers")
    first = WanText(base, cache=tmp_path).encode(["a cat"])
    (file,) = tmp_path.iterdir()
    if shape is None:
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    else:
        save_file({"embedding": torch.ones(shape)}, file, metadata=read_metadata(file))
    text = WanText(base, cache=tmp_path)
    assert not text.knows(["a cat"])
    assert torch.equal(text.encode(["a cat"]), first)
    assert WanText(base, cache=tmp_path).knows(["a cat"])


def test_the_text_encoder_is_planned_as_it_is_held(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, though its files are in float32, and not at all for prompts whose embeddings are known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config("self-forcing", memory="none", settings=SMALL)

    def planned(*prompts: str) -> int:
        budget = memory_plan(config, device="cpu", seconds=2, weights=weights, prompts=prompts)
        return sum(part.bytes for part in budget.parts if part.phase == "text")

    encoder = sum(2 * parameter.numel() for parameter in umt5().parameters())
    assert planned("a cat") == pytest.approx(1.05 * encoder, abs=1)
    Pipeline.load(config, device="cpu", weights=weights, prompts=["a cat"])
    assert planned("a cat") == planned() == 0
    assert planned("a cat", "a") > 0


def test_damaged_parts_are_named(weights: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "vae").mkdir(parents=True)
    (base / "vae/config.json").write_text("{")
    with pytest.raises(LlragError, match=r"vae/config\.json` cannot be read") as caught:
        load_vae(WanBase(base), torch.float32)
    assert "llrag download weights vae --force" in hint_for(caught.value)
