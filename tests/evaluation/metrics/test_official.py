"""The official backend on small random models in the released formats: fetched, loaded, and scoring a video."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessor, CLIPImageProcessor, CLIPModel, Dinov2Model, ViTImageProcessor, ViTModel

from conftest import Llrag
from hub import Hub
from llrag_cli import LlragError
from llrag_cli.cli.hints import hint_for
from llrag_cli.evaluation.metrics.consistency import MappingTable, fused
from llrag_cli.evaluation.metrics.motion import is_dynamic
from llrag_cli.evaluation.metrics.official import (
    CLIP,
    DINO,
    DINOV2,
    IMAGENET,
    OPENAI,
    Preparation,
    aesthetic,
    official,
    raft_flow,
    read_mapping,
)
from llrag_cli.evaluation.metrics.registry import METRICS, drift_metrics, unavailable
from llrag_cli.runs.video import VideoWriter, read_video
from official_metrics import TABLE, metric_files, metric_repos, pickled, raft_state, serve

CPU = torch.device("cpu")
FPS = 8


def has_raft() -> bool:
    return len(raft_state()) > 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder that `llrag download metrics` has filled."""
    from typer.testing import CliRunner

    from llrag_cli.cli.main import app

    folder = tmp_path_factory.mktemp("metrics")
    with (
        pytest.MonkeyPatch.context() as patch,
        Hub(metric_repos(folder / "repos"), web=metric_files()) as hub,
    ):
        serve(hub, folder / "hf", patch)
        done = CliRunner().invoke(app, ["download", "metrics", "--to", str(folder / "weights")])
        assert done.exit_code == 0, done.output
    return folder / "weights"


@pytest.fixture
def spoiled(weights: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(weights, tmp_path / "weights"))


def video(path: Path, *, clips: int = 3, seed: int = 0) -> Path:
    """A scene that pans, and changes from clip to clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, fps=FPS)
    for clip in range(clips):
        coarse = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(seed + clip))
        picture = F.interpolate(coarse, size=(128, 192), mode="bilinear")[0] * 2 - 1
        writer.write(torch.stack([picture.roll(2 * number, dims=2) for number in range(2 * FPS)]))
    writer.close()
    return path


# --- formulae


def test_the_mapping_is_interpolated() -> None:
    table = MappingTable((0.0, 0.1, 0.2, 1.0), (0.0, 0.8, 0.9, 1.0))
    assert [table(score) for score in (0.0, 0.05, 0.1, 0.125, 0.6, 1.0)] == pytest.approx([0, 0.4, 0.8, 0.825, 0.95, 1])
    assert fused(0.98, table(0.125)) == pytest.approx(0.9025)
    assert fused(0.98, None) is fused(None, 0.9) is None


def test_the_aesthetic_head_reads_unit_features_and_is_divided_by_ten() -> None:
    score = aesthetic(lambda frames: torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1))
    assert score(torch.zeros(2, 3, 4, 4)).tolist() == pytest.approx([0.32, 0.30])  # (0.6 + 1.6 + 1) / 10, (2 + 1) / 10


@pytest.mark.parametrize(("moving", "dynamic"), [(0, False), (1, False), (2, True), (8, True)])
def test_dynamic_degree_counts_pairs(moving: int, *, dynamic: bool) -> None:
    """Nine frames at 8 fps are looked at: round(4 * 9 / 16) = 2 pairs must move."""
    pairs = iter(range(8))

    def flow(one: Tensor, other: Tensor) -> Tensor:
        field = torch.zeros(2, 256, 256)
        if next(pairs) < moving:
            field[0, :13] = 6.1  # 5.08 % of the picture, above 6 pixels at a shorter side of 256
        return field

    assert is_dynamic(torch.zeros(9, 3, 256, 256), flow, fps=8) is dynamic


# --- preprocessing, beside that of transformers


def picture(height: int, width: int) -> Tensor:
    """A smooth picture [3, height, width] of whole numbers over 255."""
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(4)) * 0.6 + 0.2
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0].mul(255).round() / 255


def by_transformers(processor: Any, frame: Tensor) -> Tensor:
    image = Image.fromarray((255 * frame).round().byte().permute(1, 2, 0).numpy())
    return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])


def one_step(colours: tuple[tuple[float, ...], tuple[float, ...]]) -> float:
    """What rounding to whole numbers, as PIL does along each axis, may come to after normalisation."""
    return 1.1 / 255 / min(colours[1])


def test_clip_crops_and_normalises_as_transformers() -> None:
    """Of 224 lines, nothing is resized."""
    frame = picture(224, 398)
    assert CLIP(frame[None])[0] == pytest.approx(by_transformers(CLIPImageProcessor(), frame).numpy(), abs=1e-5)
    assert one_step(OPENAI) > 1e-5


def test_dinov2_resizes_crops_and_normalises_as_transformers() -> None:
    mean, deviation = IMAGENET
    processor = BitImageProcessor(
        size={"shortest_edge": 256}, crop_size=224, resample=3, image_mean=mean, image_std=deviation
    )
    frame = picture(480, 840)  # 256 x 448: an even rest, which both cut in the same place
    gap = (DINOV2(frame[None])[0] - by_transformers(processor, frame)).abs()
    assert gap.max() < one_step(IMAGENET)


def test_dino_resizes_and_normalises_as_transformers() -> None:
    """Enlarging a square, where smoothing before makes no difference."""
    mean, deviation = IMAGENET
    processor = ViTImageProcessor(size={"height": 224, "width": 224}, image_mean=mean, image_std=deviation)
    frame = picture(128, 128)
    assert (DINO(frame[None])[0] - by_transformers(processor, frame)).abs().max() < one_step(IMAGENET)


@pytest.mark.parametrize(
    ("prepare", "shape"), [(DINO, (224, 388)), (DINOV2, (224, 224)), (CLIP, (224, 224))], ids=["dino", "dinov2", "clip"]
)
def test_sizes_of_a_wide_and_a_tall_video(prepare: Preparation, shape: tuple[int, int]) -> None:
    assert prepare(torch.zeros(2, 3, 480, 832)).shape == (2, 3, *shape)
    assert prepare(torch.zeros(2, 3, 832, 480)).shape == (2, 3, *shape[::-1])


# --- from the hub to a score


def reference(path: Path, repos: Path) -> dict[str, Any]:
    """The metrics of a video by the libraries' own loading of the very files, formulae written out."""
    frames = read_video(path)
    clips = frames.split(2 * FPS)

    def score(features: Tensor) -> float:
        pairs = [
            (max(0.0, F.cosine_similarity(a, b, dim=0).item()), max(0.0, F.cosine_similarity(first, b, dim=0).item()))
            for first, a, b in zip(features[:1].expand(len(features) - 1, -1), features, features[1:], strict=False)
        ]
        return sum(before + start for before, start in pairs) / 2 / len(pairs)

    def pixels(batch: Tensor, size: tuple[int, int], mode: str, colours: Any, **options: bool) -> Tensor:
        small = F.interpolate(batch, size=size, mode=mode, **options)
        top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
        if mode == "bicubic":
            small = small[:, :, top : top + 224, left : left + 224]
        return (small - torch.tensor(colours[0]).view(3, 1, 1)) / torch.tensor(colours[1]).view(3, 1, 1)

    vit = ViTModel.from_pretrained(repos / "facebook/dino-vitb16", add_pooling_layer=False).eval()
    dinov2 = Dinov2Model.from_pretrained(repos / "facebook/dinov2-base").eval()
    base, large = (
        CLIPModel.from_pretrained(repos / f"openai/clip-vit-{name}").eval()
        for name in ("base-patch32", "large-patch14")
    )
    firsts = torch.stack([clip[0] for clip in clips])
    subject = [
        vit(pixels(clip, (224, 336), "bilinear", IMAGENET), interpolate_pos_encoding=True).last_hidden_state[:, 0]
        for clip in clips
    ]
    seen = [pixels(clip, (224, 336), "bicubic", OPENAI) for clip in clips]
    background = [base.visual_projection(base.vision_model(each).pooler_output) for each in seen]
    beauty = [large.visual_projection(large.vision_model(each).pooler_output) for each in seen]
    head = torch.load(repos.parent / "weights/metrics/sa_0_4_vit_l_14_linear.pth")
    marks = [F.linear(F.normalize(each, dim=-1), head["weight"], head["bias"]) / 10 for each in beauty]
    first_tokens = dinov2(pixels(firsts, (256, 384), "bicubic", IMAGENET, antialias=True)).last_hidden_state[:, 0]
    across = score(first_tokens)
    below, above = max(key for key in TABLE if key <= across), min(key for key in TABLE if key > across)
    mapped = TABLE[below] + (across - below) / (above - below) * (TABLE[above] - TABLE[below])
    within = sum(score(each) for each in subject) / len(clips)
    return {
        "consistency_within": within,
        "consistency_across": across,
        "consistency_mapped": mapped,
        "subject_consistency": 0.5 * within + 0.5 * mapped,
        "background_within": sum(score(each) for each in background) / len(clips),
        "aesthetic_quality": sum(each.mean().item() for each in marks) / len(clips),
        "temporal_flickering": sum(1 - (c[1:] - c[:-1]).abs().mean().item() for c in clips) / len(clips),
    }


@torch.no_grad()
def test_a_video_is_scored_as_by_the_libraries_themselves(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    path = video(tmp_path / "a/1.mp4")
    done = llrag("bench", "score", "a/1.mp4", "--backend", "official", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert "Loading weights" not in done.stderr
    expected = reference(path, weights.parent / "repos")
    told = json.loads(done.stdout)
    found = told["videos"][0]
    assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected, abs=2e-5)
    assert 0.2 < expected["consistency_across"] < expected["consistency_within"] < 1  # the models tell clips apart
    assert told["backend"].startswith("official: DINO ViT-B/16, DINOv2 ViT-B/14, CLIP ViT-B/32, CLIP ViT-L/14")
    assert set(told["licences"].values()) <= {"Apache-2.0", "MIT", "BSD-3-Clause"}
    assert told["unavailable"]["motion_smoothness"].startswith("needs AMT-S")
    assert "MUSIQ" in told["not_measured"] and "DreamSim" in told["not_measured"]
    names = {metric.name for metric in METRICS.values() if not metric.sprites}
    assert set(found["metrics"]) == names - set(told["unavailable"])  # nothing is missing without a reason
    assert None not in found["metrics"].values()
    video(tmp_path / "short.mp4", clips=1)
    table = llrag("bench", "score", "short.mp4", "--backend", "official", "--device", "cpu").stdout
    assert "not measured: motion_smoothness: needs AMT-S, which is CC BY-NC" in table and "MUSIQ" in table
    assert " subject " in table and " smooth " not in table


def test_released_names_are_what_is_loaded(weights: Path) -> None:
    """The toy files carry the names of the released ones, whatever the library calls them inside."""
    names = {
        "dino-vitb16": "encoder.layer.1.attention.attention.query.weight",
        "dinov2-base": "encoder.layer.1.layer_scale1.lambda1",
        "clip-vit-base-patch32": "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "clip-vit-large-patch14": "text_model.encoder.layers.0.self_attn.q_proj.weight",
    }
    for folder, name in names.items():
        assert name in torch.load(weights / "metrics" / folder / "pytorch_model.bin")


def test_groups_are_ranked_by_what_the_backend_measures(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    for number, name in enumerate("ab"):
        video(tmp_path / name / "1.mp4", clips=2, seed=9 * number)
    done = llrag("bench", "score", ".", "--backend", "official", "--rank-folders", "--json")
    groups = json.loads(done.stdout)["folders"]
    assert set(groups["a"]["means"]) == {
        "subject_consistency",
        "background_within",
        "temporal_flickering",
        "aesthetic_quality",
        *drift_metrics(),
    }
    for rank in ("average_rank", "drift_rank"):
        assert groups["a"][rank] + groups["b"][rank] == 3


def test_a_benchmark_keeps_the_scores_of_backends_apart(
    weights: Path, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(weights))
    grid = (
        "bench",
        "--out",
        "b",
        "--count",
        "1",
        "--horizon",
        "5",
        "--memory",
        "none",
        "--set",
        "sampler.steps=[1000]",
    )
    for backend in ("official", "offline"):
        done = llrag(*grid, "--backend", backend, "--device", "cpu")
        assert done.returncode == 0, done.stderr
        told = json.loads((tmp_path / "b/results.json").read_text())
        assert told["backend"].startswith(f"{backend}: ") and told["unavailable"] and told["licences"]
        page = (tmp_path / "b/report.html").read_text(encoding="utf-8")
        assert "imaging quality" in page and ("LAION head (MIT)" in page) == (backend == "official")
        for file in (tmp_path / "b").rglob(f"scores-{backend}.json"):
            assert json.loads(file.read_text())["backend"] == told["backend"]
    assert "0 missing, 1 finished" in done.stderr.replace("\n", " ")
    assert len(list((tmp_path / "b").rglob("scores-*.json"))) == 2


def test_an_unknown_backend_is_refused(llrag: Llrag, tmp_path: Path) -> None:
    video(tmp_path / "1.mp4", clips=1)
    for arguments in (("score", "1.mp4"), ()):
        done = llrag("bench", *arguments, "--backend", "oficial")
        assert done.returncode == 2
        assert "unknown backend `oficial`\n\nhint: did you mean `official`?" in done.stderr


# --- weights that are not as they should be


def test_missing_weights_are_one_sentence(llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLRAG_WEIGHTS", str(tmp_path / "nothing"))
    video(tmp_path / "1.mp4", clips=1)
    done = llrag("bench", "score", "1.mp4", "--backend", "official")
    assert done.returncode == 1
    assert "error: the official backend lacks a model: `" in done.stderr and "` does not exist" in done.stderr
    assert "hint: `llrag download metrics` fetches them" in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dino-vitb16/pytorch_model.bin", b"PK\3\4 cut short", "cannot be read as a checkpoint"),
        ("dinov2-base/config.json", b"{", "config.json` cannot be read"),
        ("dinov2-base/config.json", b'{"model_type": "vit"}', "config.json` is of another model: `vit`"),
        (
            "sa_0_4_vit_l_14_linear.pth",
            pickled({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}),
            "is not LAION's",
        ),
        ("sa_0_4_vit_l_14_linear.pth", pickled([1, 2]), "holds no weights"),
        ("subject_mapping_table.yaml", b"0.0: 0.0\n0.5: 0.9\n", "is not a mapping table"),
        ("subject_mapping_table.yaml", b"<html>", "is not a mapping table"),
    ],
)
def test_what_is_damaged_is_named(spoiled: Path, file: str, content: bytes, said: str) -> None:
    place = spoiled / "metrics" / file
    place.unlink()  # the same file as in the folder this is a copy of, where links were copied
    place.write_bytes(content)
    with pytest.raises(LlragError) as problem:
        official(spoiled, CPU)
    assert str(place) in problem.value.problem and said in problem.value.problem
    assert "llrag" not in problem.value.hint
    assert "llrag download metrics --force" in hint_for(problem.value)


def test_a_truncated_file_is_named(spoiled: Path) -> None:
    place = spoiled / "metrics/clip-vit-base-patch32/pytorch_model.bin"
    whole = place.read_bytes()
    place.unlink()
    place.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LlragError, match=r"clip-vit-base-patch32/pytorch_model\.bin` cannot be read as a checkpoint"):
        official(spoiled, CPU)


def test_weights_of_another_model_are_named(spoiled: Path) -> None:
    place = spoiled / "metrics/dino-vitb16/pytorch_model.bin"
    state = torch.load(place)
    other = dict(state)
    del other["layernorm.bias"]
    other["head.weight"] = torch.zeros(2)
    for content, said in (
        (other, r"is not dino-vitb16: it lacks `layernorm\.bias` and has unknown `head\.weight`"),
        (state | {"layernorm.bias": torch.zeros(3)}, r"is not dino-vitb16: it lacks `layernorm\.bias`"),
        (torch.load(spoiled / "metrics/dinov2-base/pytorch_model.bin"), r"is not dino-vitb16: it lacks"),
    ):
        place.unlink()
        place.write_bytes(pickled(content))
        with pytest.raises(LlragError, match=said):
            official(spoiled, CPU)


# --- RAFT, where torchvision can be imported


def test_without_torchvision_dynamic_degree_says_so(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    backend = official(weights, CPU)
    assert backend.flow is None and "RAFT" not in backend.name
    assert unavailable(backend)["dynamic_degree"].startswith("needs RAFT of torchvision, which cannot be imported here")


@pytest.mark.skipif(not has_raft(), reason="needs a torchvision made for this torch")
def test_raft_reads_its_weights_and_any_size(spoiled: Path) -> None:
    path = spoiled / "metrics/raft_large_C_T_V1.pth"
    flow, why_not = raft_flow(path, CPU)
    assert flow is not None and why_not is None
    assert flow(picture(130, 197), picture(130, 197).roll(2, dims=2)).shape == (2, 130, 197)
    assert flow(picture(64, 64), picture(64, 64)).shape == (2, 64, 64)
    path.unlink()
    path.write_bytes(pickled({"weight": torch.zeros(1)}))
    with pytest.raises(LlragError, match=r"is not RAFT: Missing key"):
        raft_flow(path, CPU)


def test_the_table_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "table.yaml").write_text("1.0: 1.0\n0.0: 0.0\n0.5: 0.9\n")
    assert read_mapping(tmp_path / "table.yaml") == MappingTable((0.0, 0.5, 1.0), (0.0, 0.9, 1.0))


@pytest.mark.parametrize(("size", "length", "dynamic"), [(256, 6.1, True), (256, 5.9, False), (512, 11.9, False)])
def test_dynamic_degree_of_a_wide_video_at_16_fps(size: int, length: float, *, dynamic: bool) -> None:
    """Every second frame is looked at, and displacements count against the shorter side."""
    numbers = iter([0, 2, 2, 4, 4, 6, 6, 8])

    def flow(one: Tensor, other: Tensor) -> Tensor:
        assert [int(one[0, 0, 0]), int(other[0, 0, 0])] == [next(numbers), next(numbers)]
        return torch.tensor([length, 0.0]).view(2, 1, 1).expand(2, size, 2 * size)

    clip = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 3, size, 2 * size)
    assert is_dynamic(clip, flow, fps=16) is dynamic
