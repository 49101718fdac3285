"""The models that VBench-Long names, each loaded by a library that maintains it, from the weights folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, CLIPConfig, CLIPVisionModelWithProjection, Dinov2Model, ViTModel
from transformers.utils import logging

from llrag_cli.errors import InvalidMetricModelError, LlragError, MissingMetricModelError, UsageError
from llrag_cli.evaluation.metrics.consistency import MappingTable
from llrag_cli.evaluation.metrics.features import TOGETHER
from llrag_cli.evaluation.metrics.inputs import Backend, Features, Flow
from llrag_cli.files.tensors import read_file
from llrag_cli.files.yaml_lines import parse_yaml, read_text

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of red, green, blue
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LICENCES = {
    "DINO ViT-B/16": "Apache-2.0",
    "DINOv2 ViT-B/14": "Apache-2.0",
    "CLIP ViT-B/32": "MIT",
    "CLIP ViT-L/14": "MIT",
    "LAION head": "MIT",
    "VBench-Long mapping": "Apache-2.0",
}


@dataclass(frozen=True)
class Preparation:
    """How frames become the input of a model: shorter side, central square crop, colours."""

    side: int  # pixels; the longer side is rounded down
    crop: int | None  # pixels
    mode: Literal["bilinear", "bicubic"]
    antialias: bool
    colours: tuple[tuple[float, ...], tuple[float, ...]]

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames [T, 3, H, W] in [0, 1] to normalised ones [T, 3, h, w]."""
        height, width = frames.shape[2:]
        shorter = min(height, width)
        size = [self.side * height // shorter, self.side * width // shorter]
        resized = F.interpolate(frames, size=size, mode=self.mode, align_corners=False, antialias=self.antialias)
        if self.crop is not None:
            top, left = (round((length - self.crop) / 2) for length in size)
            resized = resized[..., top : top + self.crop, left : left + self.crop]
        mean, deviation = (torch.tensor(values).view(3, 1, 1).to(frames) for values in self.colours)
        return (resized - mean) / deviation


DINO = Preparation(224, None, "bilinear", antialias=False, colours=IMAGENET)
DINOV2 = Preparation(256, 224, "bicubic", antialias=True, colours=IMAGENET)
CLIP = Preparation(224, 224, "bicubic", antialias=False, colours=OPENAI)


def official(folder: Path, device: torch.device) -> Backend:
    """The official backend with the models in a folder of weights.

    Raises ``LlragError`` that names the first file that is missing, damaged or of another model.
    """
    metrics = folder / "metrics"
    flow, problem = raft_flow(metrics / "raft_large_C_T_V1.pth", device)
    vit = vision_model(metrics / "dino-vitb16", ViTModel, add_pooling_layer=False)
    dino = features(vit, DINO, _class_token, device)
    dinov2 = features(vision_model(metrics / "dinov2-base", Dinov2Model), DINOV2, _class_token, device)
    base, large = (
        vision_model(metrics / name, CLIPVisionModelWithProjection)
        for name in ("clip-vit-base-patch32", "clip-vit-large-patch14")
    )
    weight, bias = linear_head(metrics / "sa_0_4_vit_l_14_linear.pth", width=large.config.projection_dim)
    licences = LICENCES if flow is None else {**LICENCES, "RAFT": "BSD-3-Clause"}
    return Backend(
        name=f"official: {', '.join(licences)}",
        features=dino,
        first_features=dinov2,
        background=features(base, CLIP, _embedding, device),
        aesthetic=aesthetic(features(large, CLIP, _embedding, device), weight, bias),
        flow=flow,
        mapping=read_mapping(metrics / "subject_mapping_table.yaml"),
        licences=licences,
        missing={} if problem is None else {"dynamic_degree": problem},
    )


def features(
    model: torch.nn.Module,
    prepare: Preparation,
    embed: Callable[[torch.nn.Module, Tensor], Tensor],
    device: torch.device,
) -> Features:
    """A model as a function of frames [T, 3, H, W] in [0, 1] on the host to features [T, D] on the host."""
    model.eval().requires_grad_(requires_grad=False).to(device)

    @torch.no_grad()
    def of_frames(frames: Tensor) -> Tensor:
        return torch.cat([embed(model, prepare(part.to(device))).cpu() for part in frames.split(TOGETHER)])

    return of_frames


def _class_token(model: Any, pixels: Tensor) -> Tensor:
    """The output of DINO's and DINOv2's own code: the class token after the last norm."""
    sizes = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}  # DINOv2 always does
    return model(pixels, **sizes).last_hidden_state[:, 0]


def _embedding(model: Any, pixels: Tensor) -> Tensor:
    """The output of CLIP's ``encode_image``."""
    return model(pixels).image_embeds


def linear_head(path: Path, *, width: int) -> tuple[Tensor, Tensor]:
    """Weight [1, width] and bias [1] of LAION's head."""
    state = _read(path)
    head = torch.nn.Linear(width, 1)
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise _other(path, "LAION's head for CLIP ViT-L/14", error) from None
    return head.weight.detach(), head.bias.detach()


def aesthetic(embeddings: Features, weight: Tensor, bias: Tensor) -> Features:
    """LAION's linear head on CLIP's unit embeddings, over 10: frames [T, 3, H, W] to [T], in about 0..1."""

    def of_frames(frames: Tensor) -> Tensor:
        units = F.normalize(embeddings(frames), dim=-1)
        return F.linear(units, weight, bias)[:, 0] / 10

    return of_frames


def raft_flow(path: Path, device: torch.device) -> tuple[Flow | None, str | None]:
    """RAFT (Teed and Deng 2020), 20 updates, from torchvision; None and the reason where that cannot be imported."""
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        return None, f"needs RAFT of torchvision, which cannot be imported here: {str(error).splitlines()[0]}"
    model = raft_large()
    state = _read(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _other(path, "RAFT", error) from None
    model.eval().requires_grad_(requires_grad=False).to(device)

    @torch.no_grad()
    def flow(one: Tensor, other: Tensor) -> Tensor:
        height, width = one.shape[1:]
        # RAFT takes multiples of 8 pixels, at least 128; half of the padding goes to each side
        down, across = (max(128, 8 * math.ceil(length / 8)) - length for length in (height, width))
        edges = (across // 2, across - across // 2, down // 2, down - down // 2)
        pair = [F.pad(2 * frame[None].to(device) - 1, edges, mode="replicate") for frame in (one, other)]
        moved = model(*pair, num_flow_updates=20)[-1][0]
        return moved[:, edges[2] : edges[2] + height, edges[0] : edges[0] + width].cpu()

    return flow, None


def read_mapping(path: Path) -> MappingTable:
    """VBench-Long's table from a score across clips to one within: both rising, in 0..1."""
    if not path.exists():
        raise MissingMetricModelError(path)
    try:
        table = parse_yaml(read_text(path, kind="mapping table"), name=path.name, text_keys=False).content
        pairs = sorted((float(score), float(mapped)) for score, mapped in table.items())
    except (UsageError, AttributeError, TypeError, ValueError, OverflowError):
        pairs = []
    if not pairs or pairs[0][0] != 0 or pairs[-1][0] != 1:
        raise InvalidMetricModelError(f"`{path}` is not a mapping table")
    return MappingTable(tuple(score for score, _ in pairs), tuple(mapped for _, mapped in pairs))


def vision_model(folder: Path, kind: Any, **options: Any) -> Any:
    """A model of transformers from ``config.json`` and ``pytorch_model.bin`` of a hub repository.

    CLIP's text tower is skipped. A missing, unknown or differently sized weight is an error that names it.
    """
    path = folder / "pytorch_model.bin"
    if not (folder / "config.json").exists():
        raise MissingMetricModelError(folder / "config.json")
    state = {
        name: tensor
        for name, tensor in _read(path).items()
        if not name.startswith(("text_model.", "text_projection.", "logit_scale")) and "position_ids" not in name
    }
    with _silence():
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InvalidMetricModelError(f"`{folder / 'config.json'}` cannot be read: {reason}") from None
        config = config.vision_config if isinstance(config, CLIPConfig) else config
        if not isinstance(config, kind.config_class):
            raise InvalidMetricModelError(f"`{folder / 'config.json'}` is of another model: `{config.model_type}`")
        model, loaded = kind.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    other = {name for name, *_ in loaded["mismatched_keys"]}
    _require_same(path, folder.name, missing=loaded["missing_keys"] | other, unknown=loaded["unexpected_keys"])
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict, from a file that may be missing, cut short or something else."""
    if not path.exists():
        raise MissingMetricModelError(path)
    try:
        state = read_file(path)
    except LlragError as error:
        raise InvalidMetricModelError(error.problem) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InvalidMetricModelError(f"`{path}` holds no weights")
    return state


def _other(path: Path, name: str, error: RuntimeError) -> InvalidMetricModelError:
    return InvalidMetricModelError(f"`{path}` is not {name}: {str(error).splitlines()[1].strip()}")


def _require_same(path: Path, name: str, *, missing: set[str], unknown: set[str]) -> None:
    if missing or unknown:
        problems = [f"lacks `{min(missing)}`"] if missing else []
        problems += [f"has unknown `{min(unknown)}`"] if unknown else []
        raise InvalidMetricModelError(f"`{path}` is not {name}: it {' and '.join(problems)}")


@contextmanager
def _silence() -> Iterator[None]:
    """Silence transformers while it loads: problems are reported by our own errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
