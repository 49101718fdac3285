"""A family says what it needs and refuses what it cannot run, before anything large is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from conftest import GOLDENS
from llrag_cli import load_config
from llrag_cli.cli.hints import hint_for
from llrag_cli.config import LATENT_SPACES, BackboneConfig
from llrag_cli.engine.devices import find_dtype
from llrag_cli.errors import DamagedFileError, MissingWeightsError, UnsupportedModelError
from llrag_cli.models.family import family_of, require_files
from llrag_cli.models.wan.base import WanBase
from llrag_cli.models.wan.checkpoints import generator_state, load_transformer
from llrag_cli.models.wan.vae import WanDecoder, wan_vae_from
from official import official_repos

SMALL = ("backbone.height=8", "backbone.width=12")


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return official_repos(tmp_path_factory.mktemp("official"))


@pytest.fixture
def weights(repos: dict[str, dict[str, bytes]], tmp_path: Path) -> Path:
    """The files of self-forcing as they are downloaded, at toy size."""
    folder = tmp_path / "weights"
    for path, content in repos["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"].items():
        file = folder / "Wan2.1-T2V-1.3B-Diffusers" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name in ("self_forcing.pt", "ae_latent_mem.pt"):
        (folder / name).write_bytes(repos["qixinhu11/LongLive-RAG"][f"checkpoints/{name}"])
    return folder


def generator() -> dict[str, torch.Tensor]:
    return generator_state(load_file(GOLDENS / "weights_generator.safetensors"), ema=False)


def test_families_are_found_without_torch() -> None:
    code = """
import sys
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config
from pathlib import Path
for name in ("tiny", "self-forcing"):
    config = load_config(name, memory="nearest")
    print(family_of(config).name, len(family_of(config).missing(config, Path("nowhere"))))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tiny", "0", "wan", "3"]


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown family; known are `tiny`, `wan`"):
        BackboneConfig(family="huge")


@pytest.mark.parametrize("name", ["tiny", "self-forcing"])
def test_a_family_is_what_the_configuration_says(name: str) -> None:
    config = load_config(name, memory="none")
    family = family_of(config)
    assert family.name == config.backbone.family
    assert family.latent_space is LATENT_SPACES[family.name]
    assert (family.bundled_encoder is not None) == family.bundled == (name == "tiny")
    prompts = family.example_prompts(3, seed=1)
    assert prompts == family.example_prompts(3, seed=1)
    assert prompts is None or len(prompts) == 3
    assert find_dtype("auto", torch.device("cuda"), family=family) is (
        torch.float32 if family.bundled else torch.bfloat16
    )


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_number_of_frames_makes_a_block(frames: int) -> None:
    config = load_config("tiny", memory="none", settings=[f"backbone.frames_per_block={frames}"])
    assert config.latent_frames(3) % frames == 0
    assert config.video_frames(config.latent_frames(3)) >= 24
    assert (config.width, config.height) == (128, 128)


def test_complete_weights_lack_nothing(weights: Path) -> None:
    config = load_config("self-forcing", memory="nearest", settings=SMALL)
    assert family_of(config).missing(config, weights) == {}
    require_files(config, weights)


@pytest.mark.parametrize(
    ("setting", "file"),
    [
        ("backbone.weights", "self_forcing.pt"),
        ("memory.encoder", "ae_latent_mem.pt"),
        ("backbone.base", "Wan2.1-T2V-1.3B-Diffusers/vae/diffusion_pytorch_model.safetensors"),
        ("backbone.base", "Wan2.1-T2V-1.3B-Diffusers/vae/config.json"),
        ("backbone.base", "Wan2.1-T2V-1.3B-Diffusers/tokenizer/tokenizer.json"),
        ("backbone.base", "Wan2.1-T2V-1.3B-Diffusers/text_encoder/config.json"),
        ("backbone.base", "Wan2.1-T2V-1.3B-Diffusers/text_encoder/model-00002-of-00003.safetensors"),
    ],
)
def test_each_missing_file_is_named(weights: Path, setting: str, file: str) -> None:
    shards = sorted((weights / "Wan2.1-T2V-1.3B-Diffusers/text_encoder").glob("model-*"))
    path = shards[1] if "model-" in file else weights / file
    path.unlink()
    config = load_config("self-forcing", memory="nearest", settings=SMALL)
    assert family_of(config).missing(config, weights) == {setting: path}
    with pytest.raises(MissingWeightsError, match=f"`{path}` does not exist .setting `{setting}`") as caught:
        require_files(config, weights)
    assert "llrag" not in caught.value.hint
    assert "`llrag download weights self-forcing` fetches them" in hint_for(caught.value)


def test_damage_is_found_before_the_text_encoder_is_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.models.wan.text.load_text_encoder", lambda *_: pytest.fail("it was read"))
    config = load_config("self-forcing", memory="none", settings=SMALL)

    def load() -> None:
        family_of(config).load(
            config, weights, device=torch.device("cpu"), dtype=torch.float32, prompts=["a prompt of its own"]
        )

    base = weights / "Wan2.1-T2V-1.3B-Diffusers"
    for file in (
        weights / "self_forcing.pt",
        base / "vae/diffusion_pytorch_model.safetensors",
        *(base / "text_encoder").glob("model-*"),
        base / "text_encoder/model.safetensors.index.json",
        base / "vae/config.json",
    ):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedFileError, match=file.name):
            load()
        file.write_bytes(whole)
    with pytest.raises(pytest.fail.Exception, match="it was read"):
        load()


# --- models of another shape ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_residual": True}, "its blocks are residual"),
        ({"patch_size": 2}, "it folds patches of 2 pixels"),
        ({"in_channels": 12, "out_channels": 12}, "its frames have 12 and 12 channels"),
        ({"temperal_downsample": [True, True, True]}, "not 8 times smaller in space and 4 times in time"),
        ({"z_dim": 48}, "means for 16 channels of latents that have 48"),
    ],
)
def test_a_vae_of_another_shape_is_refused(weights: Path, changes: dict[str, object], reason: str) -> None:
    config = load_config("self-forcing", memory="none", settings=SMALL)
    file = weights / "Wan2.1-T2V-1.3B-Diffusers/vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    cpu = torch.device("cpu")
    with pytest.raises(UnsupportedModelError, match=reason):
        family_of(config).load(config, weights, device=cpu, dtype=torch.float32)
    with pytest.raises(UnsupportedModelError, match=reason):
        family_of(config).decoder_bytes(config, weights, torch.float32)


def test_a_vae_of_wan22_is_refused() -> None:
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        scale_factor_spatial=16,
    )
    with pytest.raises(UnsupportedModelError, match=r"as in the VAE of Wan2\.2"):
        WanDecoder(vae)
    state = load_file(GOLDENS / "weights_vae_tiny.safetensors")
    state["decoder.head.2.weight"] = torch.zeros(12, *state["decoder.head.2.weight"].shape[1:])
    with pytest.raises(UnsupportedModelError, match="its frames have 12 channels, not 3"):
        wan_vae_from(state, source="Wan2.2_VAE.pth")


def test_a_transformer_that_reads_an_image_is_refused() -> None:
    state = generator()
    patch = state["patch_embedding.weight"]
    wide = {**state, "patch_embedding.weight": torch.zeros(patch.shape[0], 36, *patch.shape[2:])}
    with pytest.raises(UnsupportedModelError, match="`i2v` is not supported: it reads 36 channels and writes 16"):
        load_transformer(wide, source="i2v", heads=3)
    with pytest.raises(UnsupportedModelError, match="image embeddings"):
        load_transformer({**state, "img_emb.proj.0.weight": torch.zeros(1)}, source="i2v", heads=3)
    long = {**state, "patch_embedding.weight": torch.zeros(patch.shape[0], 16, 2, *patch.shape[3:])}
    long["head.head.weight"] = torch.zeros(2 * len(state["head.head.weight"]), patch.shape[0])
    with pytest.raises(UnsupportedModelError, match="its tokens span 2 latent frames"):
        load_transformer(long, source="other", heads=3)


def test_a_transformer_of_other_latents_than_the_vae_is_refused(weights: Path) -> None:
    state = generator()
    patch = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = torch.zeros(patch.shape[0], 48, *patch.shape[2:])
    head = state["head.head.weight"]
    state["head.head.weight"] = torch.zeros(3 * len(head), head.shape[1])
    state["head.head.bias"] = torch.zeros(3 * len(head))
    (weights / "self_forcing.pt").unlink()
    save_file(state, weights / "self_forcing.safetensors")
    config = load_config("self-forcing", memory="none", settings=(*SMALL, "backbone.ema=false"))
    with pytest.raises(UnsupportedModelError, match=r"its latents have 16 channels, the transformer .* reads 48"):
        family_of(config).load(config, weights, device=torch.device("cpu"), dtype=torch.float32)


def test_heads_of_a_damaged_configuration_are_no_guess(weights: Path) -> None:
    base = weights / "Wan2.1-T2V-1.3B-Diffusers"
    (base / "transformer/config.json").write_text("{}")
    with pytest.raises(DamagedFileError, match="it has no `num_attention_heads`") as caught:
        WanBase(base).heads()
    assert "`llrag download weights vae --force`" in hint_for(caught.value)
