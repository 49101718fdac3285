"""Training the retrieval encoder: the one part of LongLive-RAG that learns.

for each epoch:
    chunks of consecutive latent frames, drawn for each epoch by (seed, epoch)
    loss = reconstruction + Window Temporal Delta Loss + trajectory smoothness
    AdamW; then validation on videos held out; the best encoder is kept, and all that is needed to resume
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from torch import Tensor, nn

from llrag_cli.errors import LlragError, TrainingDiffersError, UsageError
from llrag_cli.evaluation.encoder.quality import Geometry, quality
from llrag_cli.files.guarded import reason_of
from llrag_cli.files.tensors import read_file, write_file
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.training.encoder.config import EncoderTraining
from llrag_cli.training.encoder.data import LatentPool, batches
from llrag_cli.training.encoder.folder import TrainingFolder
from llrag_cli.training.encoder.losses import LossWeights, encoder_loss

Precision = Literal["auto", "no", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb"]
PARTS = ("recon", "delta", "smooth")
VALIDATION_CHUNKS = 4  # of each video held out
EVALUATED = 16  # videos held out, at most


class Objective(nn.Module):
    """The loss as a module's forward pass, which is where several processes meet."""

    def __init__(self, autoencoder: LatentAutoencoder, weights: LossWeights) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.weights = weights

    def forward(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, delta and smoothness, each weighted, of chunks [B, S, C, H, W]."""
        loss = encoder_loss(self.autoencoder, chunk, self.weights)
        return loss.recon, loss.delta, loss.smooth


class EncoderTrainer:
    """One training, begun or resumed: ``epochs_done``, then ``run`` for the rest.

    Everything random is drawn by (seed, epoch), so an interrupted training ends with the same weights, bit for bit, and
    several processes with those of one but for rounding.
    """

    def __init__(
        self,
        pool: LatentPool,
        training: EncoderTraining,
        folder: TrainingFolder,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        tracker: Tracker | None = None,
        resume: bool = False,
    ) -> None:
        self.pool, self.training, self.folder = pool, training, folder
        self.accelerator = _accelerator(device, precision, tracker, folder.path)
        self.training_videos, self.validation_videos = pool.split(validation=training.validation, seed=training.seed)
        if len(self.training_videos) * training.chunks_per_video < self.accelerator.num_processes:
            raise UsageError(
                f"{self.accelerator.num_processes} processes cannot share {len(self.training_videos)} videos",
                hint="collect more, start fewer processes, or increase `chunks_per_video`",
            )
        sizes = EncoderConfig(
            in_channels=pool.shape[0],
            spatial_h=pool.shape[1],
            spatial_w=pool.shape[2],
            latent_dim=training.latent_dim,
            hidden_dims=training.hidden_dims,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.autoencoder = LatentAutoencoder(sizes)
        weights = LossWeights(
            delta_margin=training.delta_margin,
            delta_weight=training.delta_weight,
            delta_window=training.delta_window,
            smooth_weight=training.smooth_weight,
        )
        optimizer = torch.optim.AdamW(
            self.autoencoder.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.objective, self.optimizer = self.accelerator.prepare(Objective(self.autoencoder, weights), optimizer)
        self.epochs_done, self.best, self.best_epoch = 0, math.inf, 0
        if resume and folder.state.exists():
            self._restore()
        if self.accelerator.is_main_process:
            self._begin_folder()
        if tracker is not None:
            self.accelerator.init_trackers("llrag", config=_flat(training))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return bool(self.accelerator.is_main_process)

    def run(self, on_epoch: Callable[[Mapping[str, Any]], None] = lambda record: None) -> list[dict[str, Any]]:
        """Train to the last epoch; returns what was measured in each, as ``metrics.jsonl`` has it."""
        from llrag_cli.training.encoder.report import write_report

        if self.is_main and self.epochs_done >= self.training.epochs:  # its last report may not have been written
            write_report(self.folder, self.training, self.folder.records()[: self.epochs_done])
        for epoch in range(self.epochs_done + 1, self.training.epochs + 1):
            started = time.perf_counter()
            record: dict[str, Any] = {"epoch": epoch, "train": self._learn(epoch)}
            self.epochs_done = epoch
            if self.is_main:
                record["validation"] = self._validate()
                last = epoch == self.training.epochs
                if last or epoch == 1 or epoch % self.training.eval_every == 0:
                    record["retrieval"] = self._evaluate()
                record["seconds"] = round(time.perf_counter() - started, 3)
                self._keep(record)
                if "retrieval" in record:
                    write_report(self.folder, self.training, self.folder.records())
                on_epoch(record)
            self.accelerator.log(_flat_record(record), step=epoch)
            self.accelerator.wait_for_everyone()
        records = self.folder.records()
        # what holds the process group goes before the group, and all processes before any of them ends:
        # otherwise the last reference dies at exit and waits for a peer that has left
        self.objective = self.accelerator.unwrap_model(self.objective)
        self.accelerator.free_memory()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return records

    def _learn(self, epoch: int) -> dict[str, float]:
        """One pass over the videos; returns the mean of each part of the loss."""
        training, accelerator = self.training, self.accelerator
        examples = self.pool.drawn(
            self.training_videos,
            chunk=training.chunk,
            per_video=training.chunks_per_video,
            seed=training.seed,
            epoch=epoch,
        )
        process = accelerator.process_index, accelerator.num_processes
        sums = torch.zeros(len(PARTS), device=accelerator.device)
        self.objective.train()
        for part, whole in batches(self.pool, examples, chunk=training.chunk, batch=training.batch, process=process):
            losses = self.objective(part.to(accelerator.device))
            # gradients are averaged over processes; so weighted, they are those of the whole batch
            share = len(part) * accelerator.num_processes / whole
            accelerator.backward(share * torch.stack(losses).sum())
            accelerator.clip_grad_norm_(self.objective.parameters(), training.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            sums += len(part) * torch.stack([loss.detach().float() for loss in losses])
        means = accelerator.reduce(sums, reduction="sum") / len(examples)
        return _named(means.tolist())

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The mean of each part of the loss on the videos held out."""
        training, objective = self.training, self.accelerator.unwrap_model(self.objective)
        examples = self.pool.covering(self.validation_videos, chunk=training.chunk, most=VALIDATION_CHUNKS)
        objective.eval()
        sums = torch.zeros(len(PARTS))
        with self.accelerator.autocast():
            for part, _ in batches(self.pool, examples, chunk=training.chunk, batch=training.batch):
                losses = objective(part.to(self.accelerator.device))
                sums += len(part) * torch.stack([loss.float() for loss in losses]).cpu()
        return _named((sums / len(examples)).tolist())

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Any]:
        """Retrieval quality on the validation videos, as far as it is defined without ground truth."""
        autoencoder = self.accelerator.unwrap_model(self.objective).autoencoder
        keys = [
            torch.cat([autoencoder(frames).float().cpu() for frames in self.pool.frames(video).split(256)])
            for video in self.validation_videos[:EVALUATED]
        ]
        measured = asdict(quality(keys, Geometry()))
        return {name: measured[name] for name in ("similarity", "effective_rank", "near_guard")}

    def _keep(self, record: dict[str, Any]) -> None:
        """Write the epoch's record, its encoder if it is the best, and what is needed to resume."""
        folder = self.folder
        model = self.accelerator.unwrap_model(self.objective).autoencoder
        total = record["validation"]["total"]
        if not math.isfinite(total):
            raise LlragError(
                f"the loss is {total} in epoch {record['epoch']}",
                hint="train in full precision, or with a smaller `learning_rate`; the best encoder so far is kept",
            )
        if total < self.best:
            self.best, self.best_epoch = total, record["epoch"]
            tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
            about = {"config": model.config.model_dump_json(), "training": self.training.model_dump_json()}
            with folder.replacing(folder.out) as path:
                write_file(tensors, path, metadata=about)
        record["best_epoch"] = self.best_epoch
        lines = [json.dumps(each) for each in [*folder.records()[: record["epoch"] - 1], record]]
        with folder.replacing(folder.metrics) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scaler = self.accelerator.scaler
        state = {
            "model": model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "epoch": record["epoch"],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "settings": self._settings(),
        }
        with folder.replacing(folder.state) as path:
            torch.save(state, path)

    def _restore(self) -> None:
        state = read_file(self.folder.state)
        if not isinstance(state, Mapping) or not {"model", "optimizer", "epoch", "settings"} <= state.keys():
            raise LlragError(f"`{self.folder.state}` is not the state of a training", hint="replace the training")
        now, before = self._settings(), state["settings"]
        if not isinstance(before, Mapping):
            raise LlragError(f"`{self.folder.state}` is not the state of a training", hint="replace the training")
        changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if changed:
            raise TrainingDiffersError(self.folder.out, changed[0], before.get(changed[0]))
        try:
            self.accelerator.unwrap_model(self.objective).autoencoder.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.epochs_done, self.best, self.best_epoch = state["epoch"], float(state["best"]), state["best_epoch"]
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"`{self.folder.state}` is damaged: {reason_of(error)}"
            raise LlragError(problem, hint="replace the training") from error
        epochs = len(self.folder.records())
        if self.best_epoch and not self.folder.out.exists():
            problem = f"`{self.folder.out}` is missing: the best encoder, of epoch {self.best_epoch}"
            raise LlragError(problem, hint="restore the file, or replace the training")
        if not all(type(count) is int and 0 <= count <= epochs for count in (self.epochs_done, self.best_epoch)):
            problem = f"`{self.folder.state}` is after epoch {self.epochs_done}, its metrics are of {epochs}"
            raise LlragError(problem, hint="replace the training")

    def _settings(self) -> dict[str, Any]:
        """Settings that must be the same for a training to be resumed; it may become longer."""
        files = "\n".join(
            f"{path.name} {length}" for path, length in zip(self.pool.paths, self.pool.lengths, strict=True)
        )
        settings = self.training.model_dump(mode="json", exclude={"epochs", "eval_every"})
        return settings | {
            "latents": f"{len(self.pool)} videos, {hashlib.sha256(files.encode()).hexdigest()[:12]}",
            "precision": str(self.accelerator.mixed_precision),
        }

    def _begin_folder(self) -> None:
        content = {
            "training": self.training.model_dump(mode="json"),
            "settings": self._settings(),
            "videos": {
                "training": len(self.training_videos),
                "validation": [self.pool.paths[i].name for i in self.validation_videos],
            },
            "device": str(self.accelerator.device),
            "processes": self.accelerator.num_processes,
        }
        with self.folder.replacing(self.folder.config) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _accelerator(device: str, precision: Precision, tracker: Tracker | None, folder: Path) -> Accelerator:
    if tracker is not None and not {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}[tracker]():
        raise LlragError(f"`{tracker}` is not installed", hint=f"`pip install {tracker}`")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"
    return Accelerator(
        cpu=not on_gpu, mixed_precision=precision, log_with=tracker, project_dir=str(folder) if tracker else None
    )


def _named(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(PARTS, values, strict=True)) | {"total": sum(values)}


def _flat(training: EncoderTraining) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, tuple) else value for name, value in training.model_dump().items()}


def _flat_record(record: Mapping[str, Any]) -> dict[str, float]:
    values = {
        f"{name}/{part}": value for name in ("train", "validation") for part, value in record.get(name, {}).items()
    }
    retrieval = record.get("retrieval", {})
    values |= {f"retrieval/{name}": retrieval[name] for name in ("effective_rank", "near_guard") if name in retrieval}
    values |= {f"retrieval/similarity_{lag}": value for lag, value in retrieval.get("similarity", {}).items()}
    return values
