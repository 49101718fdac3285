"""The repositories of the official back end at toy size: random models of the right classes in the released formats."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from hub import Hub, point_to
from llrag_cli.download.catalogue import Catalogue, catalogue

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
TABLE = {0.0: 0.0, 0.25: 0.6, 0.5: 0.8, 1.0: 1.0}
EMBEDDING = 24  # of the larger CLIP


def clip(patch: int, projection: int) -> CLIPModel:
    """A small CLIP, text tower and all, that sees 224 x 224 pixels."""
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**SIZES, "intermediate_size": 48, "patch_size": patch, "image_size": 224, "initializer_factor": 4.0}
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "vocab_size": 20, "projection_dim": projection},
            vision_config={**vision, "projection_dim": projection},
            projection_dim=projection,
        )
    )


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def metric_repos(scratch: Path) -> dict[str, dict[str, bytes]]:
    """``{repository: {path: content}}`` as the hub has them: ``config.json`` and ``pytorch_model.bin``."""
    torch.manual_seed(2)
    models = {
        "facebook/dino-vitb16": ViTModel(ViTConfig(**SIZES, intermediate_size=48), add_pooling_layer=False),
        "facebook/dinov2-base": Dinov2Model(Dinov2Config(**SIZES, image_size=518, patch_size=14)),
        "openai/clip-vit-base-patch32": clip(32, 16),
        "openai/clip-vit-large-patch14": clip(14, EMBEDDING),
    }
    repos = {}
    for name, model in models.items():
        folder = scratch / name
        model.save_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        if name.startswith("openai/"):
            state["vision_model.embeddings.position_ids"] = torch.arange(8)[None]  # as the old files have
        repos[name] = {
            "config.json": (folder / "config.json").read_bytes(),
            "pytorch_model.bin": pickled(state),
            "README.md": b"# a model",
        }
    return repos


def metric_files() -> dict[str, bytes]:
    """Files of web servers: LAION's head, RAFT's weights (where torchvision is here, else a stand-in) and the table."""
    torch.manual_seed(3)
    head = torch.nn.Linear(EMBEDDING, 1).state_dict()
    return {
        "sa_0_4_vit_l_14_linear.pth": pickled(dict(head)),
        "raft_large_C_T_V1-22a6c225.pth": pickled(raft_state()),
        "subject_mapping_table.yaml": yaml.safe_dump(TABLE).encode(),
    }


def raft_state() -> dict[str, torch.Tensor]:
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError):
        return {"weight": torch.zeros(1)}
    return dict(raft_large().state_dict())


def serve(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that is fetched come from this hub, what web servers have included."""
    point_to(hub, cache, monkeypatch)
    content = catalogue().model_dump()
    for item in content["metrics"].values():
        for source in item["sources"].values():
            if source["url"] is None:
                continue
            source["url"] = f"{hub.url}/web"
            for file in source["files"]:
                if file["sha256"] is not None:
                    file["sha256"] = hashlib.sha256(hub.web[file["path"]]).hexdigest()
    here = Catalogue.model_validate(content)
    monkeypatch.setattr("llrag_cli.download.catalogue.catalogue", lambda: here)
