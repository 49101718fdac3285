"""Replays golden vectors through the engine itself and measures how far it is from them.

A case is ``NAME.json`` (what it is) with ``NAME.safetensors`` (tensors of the original system). In
float32 errors are largest absolute differences, held against the case's own tolerance. In half types
they are norms of the difference over norms of the reference, held against ``HALF_TOLERANCE``, and
rollouts are compared over their first block only: later ones amplify rounding, and similarities tie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llrag_cli.backbones.checkpoints import (
    diffusers_name,
    generator_state,
    load_transformer,
    lora_state,
    merge_lora,
    read_file,
    transformer_config,
)
from llrag_cli.backbones.rotary import FrameRotary, rotate
from llrag_cli.backbones.wan import Timesteps64, WanBackbone
from llrag_cli.config import MemoryConfig
from llrag_cli.errors import LlragError
from llrag_cli.memory.context import Context, recallable
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder, encoder_from, load_encoder
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.rollout import Block, rollout
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.losses import LossWeights, encoder_loss
from llrag_cli.vae import WanDecoder, encode_video, wan_vae_from

LATENTS, FINE, TABLES = 1e-4, 1e-5, 1e-6
HALF_TOLERANCE = 0.1


@dataclass(frozen=True)
class Check:
    """One compared quantity of a case; ``error`` is None where it was left out, for the reason in ``note``."""

    case: str
    quantity: str
    error: float | None
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Within tolerance, or left out for a reason."""
        return self.error is None or self.error <= self.tolerance


class Golden:
    """A folder of golden cases, to be replayed on a device in a dtype."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.exact = dtype in (torch.float32, torch.float64)

    def replay(self) -> Iterator[Check]:
        """Every check of every case in the folder, in order of names."""
        files = [*sorted(self.folder.glob("*.json")), *sorted(self.folder.glob("*/*.json"))]
        cases = [(file, kind) for file in files if (kind := _kind(file)) is not None]
        if not any(kind is not _skip for _, kind in cases):
            raise LlragError(
                f"`{self.folder}` holds no golden case", hint="expected NAME.json beside NAME.safetensors"
            )
        for file, kind in cases:
            yield from kind(self, file.stem, _json(file), file.parent)

    # --- what cases share ---

    def tensors(self, folder: Path, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        content: dict[str, Tensor] = read_file(folder / name)
        return content

    def backbone(self, folder: Path, weights: str, *, lora: str | None = None, alpha: float = 1.0) -> WanBackbone:
        """The generator of a case, with a LoRA merged if one is named."""
        arch = _json(folder / Path(weights).with_suffix(".json"))["arch"]
        state = generator_state(self.tensors(folder, weights), ema=False, source=weights)
        if lora is not None:
            state = merge_lora(state, lora_state(self.tensors(folder, lora)), alpha=alpha, source=lora)
        model: Any = load_transformer(state, source=weights, heads=arch["num_heads"], dtype=self.dtype)
        return WanBackbone(model.to(self.device))

    def compare(
        self, case: str, quantity: str, ours: Tensor, reference: Tensor, tolerance: float, *, relative: float = 0.0
    ) -> Check:
        """The error of a tensor; ``relative`` adds to the tolerance a share of the reference's largest value."""
        if ours.shape != reference.shape:
            return Check(case, quantity, float("inf"), tolerance, f"shape {list(ours.shape)}")
        ours, reference = ours.detach().double().cpu(), reference.double()
        difference = ours - reference
        if self.exact:
            bar = tolerance + relative * float(reference.abs().max())
            worst = float(difference.abs().max()) if difference.numel() else 0.0
            return Check(case, quantity, float("inf") if worst != worst else worst, bar)
        error = float(difference.norm() / reference.norm().clamp_min(1e-12))
        return Check(case, quantity, float("inf") if error != error else error, HALF_TOLERANCE, "relative")


Case = Callable[[Golden, str, dict[str, Any], Path], Iterator[Check]]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LlragError(f"there is no file `{path}`", hint="the folder of golden vectors is incomplete") from None
    except (OSError, ValueError) as error:
        raise LlragError(f"`{path}` cannot be read as JSON: {error}", hint="fetch the golden vectors again") from None
    return content if isinstance(content, dict) else {}


def _kind(file: Path) -> Case | None:
    """How a case is replayed, told by what its JSON holds; None for files that are no case."""
    about = _json(file)
    tensors = about.get("tensors", {})
    marks: tuple[tuple[bool, Case], ...] = (
        ("num_tensors" in about, _manifest),
        ("checksum" in about and "files" in about, _formats),
        ("generations" in about, _lora),
        ("loss_values" in about, _autoencoder),
        ("config" in about and "latents" in tensors, _generation),
        ("patch.latents" in tensors, _units),
        (any(name.endswith(".sigmas") for name in tensors), _scheduler),
        ("decode_full" in tensors, _vae),
        ("tensors" in about and (file.stem.startswith("weights") or "noise" in tensors), _skip),
    )
    return next((kind for fits, kind in marks if fits), None)


def _skip(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    yield from ()  # weights and inputs: other cases use them


def _bar(about: Mapping[str, Any], default: float) -> float:
    return float(about.get("tolerance", {}).get("recommended_atol", default))


# --- generation -------------------------------------------------------------------------------------


class RecordedNoise:
    """Noise that was drawn once and kept: ``noise`` [B, F, ...], ``renoise`` [S-1, B, F, ...]."""

    def __init__(self, noise: Tensor, renoise: Tensor) -> None:
        self.noise, self.renoise = noise, renoise

    def draw(self, block: int, step: int, shape: Sequence[int]) -> Tensor:
        """As ``Noise.draw``."""
        source = self.noise if step == 0 else self.renoise[step - 1]
        return source[: shape[0], block * shape[1] : (block + 1) * shape[1]]


def memory_of(config: Mapping[str, Any]) -> MemoryConfig:
    """Our memory configuration for one of the original's."""
    model = config["model_kwargs"]
    recalls = bool(model.get("use_latentmem", False))
    window = model["local_attn_size"]
    return MemoryConfig(
        policy="retrieval" if recalls else "native",
        window=None if window < 0 else window,
        sink=model["sink_size"],
        retrieved=model.get("memory_size", 0) if recalls else 0,
        guard=model.get("recent_exclude", 0) if recalls else 0,
        keys="encoder" if model.get("compression_method") == "ae" else "average",
    )


@dataclass
class Replay:
    """A rollout under the engine's own loop, with what its parts saw on the way."""

    latents: Tensor
    blocks: list[Block]
    seen: dict[str, Tensor]
    history: History


def _replay(
    golden: Golden,
    backbone: WanBackbone,
    config: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
    *,
    frames: int,
    batch: int,
    encode: KeyEncoder,
    wanted: Sequence[str] = (),
) -> Replay:
    memory = memory_of(config)
    schedule = FlowMatchSchedule(
        steps=config["denoising_step_list"],
        shift=config["model_kwargs"]["timestep_shift"],
        warp=config["warp_denoising_step"],
    )
    block = config["num_frame_per_block"]
    tap = Tap(backbone, schedule, wanted, block=block, window=memory.window)
    history = History(encode)
    blocks = list(
        rollout(
            tap,
            inputs["prompt_embeds"][:batch],
            frames=frames,
            shape=(*inputs["noise"].shape[2:],),  # type: ignore[arg-type]
            block=block,
            schedule=tap.schedule,
            memory=memory,
            history=history,
            noise=RecordedNoise(inputs["noise"], inputs["renoise"]),
            context_timestep=float(config["context_noise"]),
        )
    )
    tap.read_final_cache()
    return Replay(torch.cat([each.latents for each in blocks], dim=1), blocks, tap.seen, history)


class Tap:
    """A backbone that notes what passes through it, under the names the golden files use."""

    def __init__(
        self, inner: WanBackbone, schedule: FlowMatchSchedule, wanted: Sequence[str], *, block: int, window: int | None
    ) -> None:
        self.inner, self.window, self.block = inner, window, block
        self.seen: dict[str, Tensor] = {}
        self.schedule = _TappedSchedule(schedule, self)
        self._wanted = {name.split(".")[0] + "." + name.split(".")[1] for name in wanted if "." in name}
        self._block = self._call = self._start = 0
        self._context: Context | None = None
        layers = inner.transformer.blocks
        for index, layer in enumerate(layers):
            layer.register_forward_hook(self._layer_hook(index))
        if len(layers) > 1:
            layers[1].attn1.register_forward_hook(self._attention_hook)

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)
    layers = property(lambda self: self.inner.layers)

    def begin(self, prompt: Tensor, cache: Any) -> None:
        """As ``Backbone.begin``."""
        self._cache = cache
        self._block = -1
        self.inner.begin(prompt, cache)

    def attend(self, context: Context, *, start: int, block: int, height: int, width: int) -> None:
        """As ``Backbone.attend``; the block's number and the cache before it are noted."""
        self._block, self._call, self._start, self._context = start // block, 0, start, context
        self._size = (height // self.inner.patch_size[1], width // self.inner.patch_size[2])
        self.inner.attend(context, start=start, block=block, height=height, width=width)
        for call in (0, 1):
            name = f"block{self._block}.call{call}"
            if name in self._wanted:
                self._note_cache(name, end=start + (block if call else 0), layer=1)

    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """As ``Backbone.flow``."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.call{self._call}.timestep"] = timestep.reshape(1, 1).expand(noisy.shape[:2]).clone()
        flow = self.inner.flow(noisy, timestep)
        self._call += 1
        return flow

    def remember(self, latents: Tensor, timestep: float = 0.0) -> None:
        """As ``Backbone.remember``; a noted block runs its clean pass to the end first."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.clean_pass.flow"] = self.flow(latents, torch.tensor(timestep))
        self._call = -1
        self.inner.remember(latents, timestep)

    def note_clean(self, latents: Tensor) -> None:
        """A prediction of x0 after the latest call."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.step{self._call - 1}.x0"] = latents

    def read_final_cache(self) -> None:
        """What the window holds at the end, in the original's slots."""
        if "final_cache.layer0" in self._wanted:
            keys, values = self._slots(0, end=self._start + self.block)
            self.seen |= {"final_cache.layer0.k": keys, "final_cache.layer0.v": values}

    def _slots(self, layer: int, *, end: int) -> tuple[Tensor, Tensor]:
        """Keys as the original keeps them (the native model's rotated) and values [B, slots * tokens, heads, D]."""
        pages = self._cache.layers[layer]
        sink = pages.pages.sink
        first = 0 if self.window is None else max(0, end - self.window)
        frames = torch.tensor([*range(min(sink, end)), *range(first + sink, end)])
        keys, values = (part.flatten(1, 2) for part in pages.pages.read(frames, self.inner.device))
        if not self._relative:
            height, width = self._size
            keys = rotate(keys, self.inner.rotary.table(frames.double(), height=height, width=width).to(keys.device))
        return keys, values

    @property
    def _relative(self) -> bool:
        return self._cache.layers[0].pages.ring is None and self.window is not None

    def _note_cache(self, name: str, *, end: int, layer: int) -> None:
        if end == self._start:  # later calls have the block's own slots in it, half done
            keys, values = self._slots(layer, end=end)
            self.seen |= {f"{name}.cache_k_before": keys, f"{name}.cache_v_before": values}
        assert self._context is not None
        if self._context.recalled:
            frames = torch.tensor(self._context.recalled)
            keys, values = self._cache.layers[layer].pages.read(frames, self.inner.device)
            self.seen |= {f"{name}.memory_k": keys.flatten(1, 2), f"{name}.memory_v": values.flatten(1, 2)}

    def _layer_hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if "layers.tokens_in" not in self.seen and index == 0:
                self.seen["layers.tokens_in"] = args[0].clone()
            self.seen.setdefault(f"layers.block{index}.out", output.clone())

        return hook

    def _attention_hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        name = f"block{self._block}.call{self._call}"
        if name in self._wanted:
            self.seen |= {f"{name}.x": args[0].clone(), f"{name}.y": output.clone()}


class _TappedSchedule(FlowMatchSchedule):
    """The sampler's schedule, noting each prediction."""

    def __init__(self, inner: FlowMatchSchedule, tap: Tap) -> None:
        self.sigmas, self.timesteps, self.steps = inner.sigmas, inner.timesteps, inner.steps
        self._tap = tap

    def clean(self, noisy: Tensor, flow: Tensor, timestep: Tensor) -> Tensor:
        clean = super().clean(noisy, flow, timestep)
        self._tap.note_clean(clean)
        return clean


def _generation(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    config = about["config"]
    if about.get("optional"):
        yield Check(case, "latents", None, 0.0, "optional: a sink longer than a block is not run the original's way")
        return
    reference = golden.tensors(folder, about["file"])
    inputs = golden.tensors(folder, about["inputs"])
    encode: KeyEncoder = average_pool
    if config["model_kwargs"].get("compression_method") == "ae":
        encode = _encoder(golden, folder, about["ae_weights"])
    batch, frames = reference["latents"].shape[:2]
    backbone = golden.backbone(folder, about["weights"])
    replay = _replay(
        golden, backbone, config, inputs, frames=frames, batch=batch, encode=encode, wanted=list(reference)
    )
    yield from _compare_rollout(golden, case, about, replay, reference, encode)


def _encoder(golden: Golden, folder: Path, weights: str) -> LatentAutoencoder:
    sizes = _json(folder / Path(weights).with_suffix(".json"))["ae_config"]
    return encoder_from(golden.tensors(folder, weights), sizes, source=weights).to(golden.device)


def _compare_rollout(
    golden: Golden,
    case: str,
    about: Mapping[str, Any],
    replay: Replay,
    reference: Mapping[str, Tensor],
    encode: KeyEncoder,
    *,
    prefix: str = "",
) -> Iterator[Check]:
    """Latents, descriptors, what was recalled, and whatever else was noted on the way."""
    bar = _bar(about, LATENTS)
    latents = reference[f"{prefix}latents"]
    if not golden.exact:
        first = replay.blocks[0].latents.shape[1]
        yield golden.compare(case, "latents of the first block", replay.latents[:, :first], latents[:, :first], bar)
        return
    yield golden.compare(case, "latents", replay.latents, latents, bar)
    if "descriptors" in reference:
        ours = encode(replay.latents.flatten(0, 1)).unflatten(0, replay.latents.shape[:2])
        yield golden.compare(case, "descriptors", ours, reference["descriptors"], FINE)
    log = about.get("memory_indices_log", [])
    if log or any(block.recalled for block in replay.blocks):
        yield _selections(case, log, replay.blocks)
    similar = [name for name in reference if name.startswith("similarities.")]
    if similar:
        yield _similarities(golden, case, similar, reference, replay, memory_of(about["config"]))
    groups: dict[str, list[Check]] = {}
    for name, ours in replay.seen.items():
        if name in reference and not prefix:
            quantity = _quantity(name)
            groups.setdefault(quantity, []).append(golden.compare(case, quantity, ours, reference[name], bar))
    for quantity, checks in groups.items():
        yield max(checks, key=lambda check: check.error or 0.0)


def _quantity(name: str) -> str:
    """A readable name for a group of tensors."""
    for mark, quantity in (
        ("timestep", "timesteps"),
        (".x0", "x0 after each step"),
        ("clean_pass", "flow of the clean pass"),
        ("layers.", "tokens through the layers"),
        ("memory_", "recalled keys and values"),
        ("cache", "cached keys and values"),
    ):
        if mark in name:
            return quantity
    return "self-attention"


def _selections(case: str, log: Sequence[Mapping[str, Any]], blocks: Sequence[Block]) -> Check:
    """How many blocks recalled other frames, or in another order."""
    expected = {entry["query_frame"]: entry["selected_global_frames"] for entry in log}
    ours = {block.start: block.recalled for block in blocks if block.recalled}
    wrong = sum(expected.get(frame) != ours.get(frame) for frame in expected.keys() | ours.keys())
    return Check(case, "recalled frames", float(wrong), 0.0, f"{len(expected)} queries")


def _similarities(
    golden: Golden,
    case: str,
    names: Sequence[str],
    reference: Mapping[str, Tensor],
    replay: Replay,
    memory: MemoryConfig,
) -> Check:
    keys, worst = replay.history.keys, Check(case, "similarities", 0.0, FINE)
    assert memory.window is not None
    for name in names:
        start = int("".join(character for character in name if character.isdigit()))
        pool = recallable(start=start, window=memory.window, sink=memory.sink, guard=memory.guard)
        cosines = torch.bmm(keys[:, pool.start : pool.stop], keys[:, start - 1, :, None])[..., 0]
        check = golden.compare(case, "similarities", cosines, reference[name], FINE)
        worst = max(worst, check, key=lambda each: each.error or 0.0)
    return worst


def _lora(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    reference = golden.tensors(folder, about["file"])
    inputs = golden.tensors(folder, about.get("inputs", "inputs.safetensors"))
    x, timestep = reference["x"].to(golden.device, golden.dtype), torch.tensor(937.5)
    for name, lora, alpha in (
        ("base", None, 1.0),
        ("lora", about["lora"], about["alpha"]["lora"]),
        ("lora_other_alpha", about["lora"], about["alpha"]["lora_other_alpha"]),
    ):
        backbone = golden.backbone(folder, about["weights"], lora=lora, alpha=alpha)
        one = rollout(
            (first := _FirstPass(backbone)),
            inputs["prompt_embeds"][:1],
            frames=x.shape[1],
            shape=(*x.shape[2:],),  # type: ignore[arg-type]
            block=x.shape[1],
            schedule=FlowMatchSchedule(steps=[1000], shift=5.0),
            memory=MemoryConfig(window=None),
            history=History(average_pool),
            noise=RecordedNoise(reference["x"], reference["x"][None]),
        )
        first.timestep = timestep
        next(one)
        assert first.result is not None
        yield golden.compare(case, f"{name}: flow", first.result, reference[f"{name}.flow"], LATENTS)
        if f"{name}.x0" in reference:
            schedule = FlowMatchSchedule(steps=[1000], shift=5.0)
            clean = schedule.clean(x, first.result, timestep.to(golden.device))
            yield golden.compare(case, f"{name}: x0", clean, reference[f"{name}.x0"], LATENTS)
    for name, generation in about["generations"].items():
        backbone = golden.backbone(folder, about["weights"], lora=about["lora"], alpha=about["alpha"]["lora"])
        replay = _replay(
            golden,
            backbone,
            generation["config"],
            inputs,
            frames=generation["frames"],
            batch=1,
            encode=average_pool,
        )
        yield from _compare_rollout(
            golden, f"{case}: {name}", generation, replay, reference, average_pool, prefix=f"generation_{name}."
        )


class _FirstPass:
    """A backbone that is asked for one flow, at a timestep of its own choosing."""

    def __init__(self, inner: WanBackbone) -> None:
        self.inner = inner
        self.timestep = torch.tensor(1000.0)
        self.result: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        self.result = self.inner.flow(noisy, self.timestep)
        return self.result


# --- parts ------------------------------------------------------------------------------------------


def _units(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    reference = golden.tensors(folder, about["file"])
    backbone = golden.backbone(folder, about["weights"])
    model, bar = backbone.transformer, _bar(about, FINE)
    device, dtype = golden.device, golden.dtype
    with torch.no_grad():
        for name in reference:
            if name.startswith("rope.d") and name.endswith(".cos"):
                size = int(name.split(".")[1][1:])
                positions = reference[f"rope.d{size}.positions"]
                rotary = FrameRotary(size, (1, 2, 2))
                angles = torch.cat([positions.double()[:, None] * part for part in rotary.frequencies], dim=1)
                yield golden.compare(case, f"rotary cosines, heads of {size}", angles.cos(), reference[name], bar)
                sines = reference[f"rope.d{size}.sin"]
                yield golden.compare(case, f"rotary sines, heads of {size}", angles.sin(), sines, bar)
        height, width = (side // patch for side, patch in zip(reference["patch.latents"].shape[3:], (2, 2), strict=True))
        for name in (each for each in reference if each.startswith("rope.q_")):
            times = _times(name, reference["patch.latents"].shape[1])
            table = backbone.rotary.table(times, height=height, width=width).to(device)
            turned = rotate(reference["rope.q"].to(device, dtype), table)
            yield golden.compare(case, name, turned, reference[name], bar)
        latents = reference["patch.latents"].to(device, dtype)
        tokens = model.patch_embedding(latents.transpose(1, 2)).flatten(2).transpose(1, 2)
        yield golden.compare(case, "patch embedding", tokens, reference["patch.tokens"], bar)
        embedder, steps = model.condition_embedder, reference["time.t"].to(device)
        for name in ("time.sinusoid_256", "time.sinusoid_freqdim"):
            waves = Timesteps64(reference[name].shape[1]).to(device)(steps)
            yield golden.compare(case, name, waves, reference[name], bar)
        weight = embedder.time_embedder.linear_1.weight
        embedded = embedder.time_embedder(embedder.timesteps_proj(steps).to(weight.dtype)).to(dtype)
        yield golden.compare(case, "time embedding", embedded, reference["time.embedding"], bar)
        projected = embedder.time_proj(embedder.act_fn(embedded)).unflatten(1, (6, -1))
        yield golden.compare(case, "time projection", projected, reference["time.projection"], bar)
        if (folder / "inputs.safetensors").exists():
            prompt = golden.tensors(folder, "inputs.safetensors")["prompt_embeds"].to(device, dtype)
            if len(prompt) == len(reference["text.context"]):
                text = embedder.text_embedder(prompt)
                yield golden.compare(case, "text embedding", text, reference["text.context"], bar)
        x = reference["rmsnorm.x"].to(device, dtype)
        norm = nn.RMSNorm(x.shape[-1], eps=1e-6, device=device, dtype=dtype)
        norm.weight.copy_(torch.linspace(0.5, 1.5, x.shape[-1]))
        yield golden.compare(case, "RMS norm", norm(x), reference["rmsnorm.y"], bar)
        yield _unpatchify(golden, case, backbone, reference, bar)


def _times(name: str, frames: int) -> Tensor:
    """Frame times from names like ``rope.q_relative_9_10_11`` and ``rope.q_absolute_start15``."""
    if "start" in name:
        first = int(name.rsplit("start", 1)[1])
        return torch.arange(first, first + frames, dtype=torch.float64)
    return torch.tensor([float(part) for part in name.rsplit("relative_", 1)[1].split("_")], dtype=torch.float64)


def _unpatchify(
    golden: Golden, case: str, backbone: WanBackbone, reference: Mapping[str, Tensor], bar: float
) -> Check:
    """The transformer's own unpatchify, reached by replacing its last projection by given tokens."""
    model, expected = backbone.transformer, reference["unpatchify.latents"]
    tokens = reference["unpatchify.tokens_arange"].to(golden.device, golden.dtype)
    handle = model.proj_out.register_forward_hook(lambda module, args, output: tokens)
    frames = torch.zeros(1, *expected.shape, device=golden.device)
    from llrag_cli.backbones.cache import WanKVCache

    backbone.begin(torch.zeros(1, 1, model.config.text_dim), WanKVCache(layers=backbone.layers, sink=0, recent=None))
    size = {"height": expected.shape[2], "width": expected.shape[3]}
    backbone.attend(Context((), (), 0), start=0, block=expected.shape[0], **size)
    latents = backbone.flow(frames.to(golden.dtype), torch.tensor(500.0))[0]
    handle.remove()
    return golden.compare(case, "unpatchify", latents, expected, bar)


def _scheduler(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    reference = {name: tensor.to(golden.device) for name, tensor in golden.tensors(folder, about["file"]).items()}
    exact = Golden(golden.folder, device=golden.device, dtype=torch.float32)  # the sampler is, in any dtype
    for prefix in sorted({name.split(".")[0] for name in reference if "." in name}):
        schedule = FlowMatchSchedule(steps=[1000], shift=float(prefix.removeprefix("shift")))
        own = {name.split(".", 1)[1]: tensor for name, tensor in reference.items() if name.startswith(f"{prefix}.")}
        probe = own["probe_timesteps"]
        results = {"sigmas": schedule.sigmas, "timesteps": schedule.timesteps}
        if "probe_index" in own:
            results["probe_index"] = (schedule.sigmas[:, None] == schedule.sigma(probe.cpu())).float().argmax(0)
        for name in own:
            if name.startswith("warped_steps_all"):
                results[name] = schedule.warp(range(1001))
            elif name.startswith("warped_steps_"):
                results[name] = schedule.warp([int(part) for part in name.removeprefix("warped_steps_").split("_")])
        x0, noise, flow = reference["x0"], reference["noise"], reference["flow"]
        for suffix, dtype in (("", torch.float32), ("_bf16", torch.bfloat16)):
            parts = [part.to(dtype) for part in (x0, noise, flow)]
            results[f"add_noise{suffix}"] = schedule.noised(parts[0], parts[1], probe)
            results[f"flow_to_x0{suffix}"] = schedule.clean(parts[0], parts[2], probe)
        if "int_timesteps" in own:
            results["add_noise_int_timesteps"] = schedule.noised(x0, noise, own["int_timesteps"])
        for name, result in results.items():
            if name in own:
                yield exact.compare(case, f"{prefix}: {name}", result.cpu(), own[name].cpu(), _bar(about, TABLES))


def _autoencoder(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    reference = golden.tensors(folder, about["file"])
    model = _encoder(golden, folder, about["weights"]).to(golden.dtype)
    chunk = reference["chunk"].to(golden.device, golden.dtype)
    frames, bar = chunk.flatten(0, 1), _bar(about, FINE)
    embedding = model.encoder(frames)
    yield golden.compare(case, "embedding", embedding, reference["embedding"], bar)
    yield golden.compare(case, "unit embedding", model(frames), reference["embedding_normalized"], bar)
    decoded = model.decoder(embedding)
    yield golden.compare(case, "reconstruction", decoded, reference["reconstruction"], bar, relative=FINE)
    if not golden.exact:
        return
    for part in ("total", "recon", "delta", "smooth"):
        worst = Check(case, f"loss: {part}", 0.0, bar)
        for name, expected in about["loss_values"].items():
            fields = {key: expected[key] for key in LossWeights.__dataclass_fields__ if key in expected}
            length = int(name.removeprefix("seq_len_")) if name.startswith("seq_len_") else chunk.shape[1]
            loss = encoder_loss(model, chunk[:, :length], LossWeights(**fields))
            check = golden.compare(
                case, f"loss: {part}", getattr(loss, part), torch.tensor(expected[part]), bar, relative=TABLES
            )
            worst = max(worst, check, key=lambda each: each.error or 0.0)
        yield worst
    yield from _training_step(golden, case, about, model, chunk, reference)


def _training_step(
    golden: Golden,
    case: str,
    about: Mapping[str, Any],
    model: LatentAutoencoder,
    chunk: Tensor,
    reference: Mapping[str, Tensor],
) -> Iterator[Check]:
    """Gradients of the default loss, then one clipped AdamW step."""
    model.requires_grad_(True)
    torch.autograd.backward(encoder_loss(model, chunk, LossWeights()).total)
    parameters = dict(model.named_parameters())
    norms = about["grad_norms"]
    excess = max(
        abs(float(_gradient(parameters[name]).norm()) - norm) / (1e-3 + 1e-3 * norm) for name, norm in norms.items()
    )
    yield Check(case, "gradient norms", excess, 1.0, "in units of 1e-3 + 1e-3 of the norm")
    for name in (each for each in reference if each.startswith("grad.")):
        gradient = _gradient(parameters[name.removeprefix("grad.")])
        yield golden.compare(case, name, gradient, reference[name], 1e-3)
    settings = about["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    total = nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
    yield golden.compare(
        case, "total gradient norm", total, torch.tensor(about["grad_total_norm"]), 1e-3, relative=1e-3
    )
    optimizer.step()
    for name in (each for each in reference if each.startswith("after_step.")):
        stepped = parameters[name.removeprefix("after_step.")]
        yield golden.compare(case, name, stepped, reference[name], FINE)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _vae(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    reference, bar = golden.tensors(folder, about["file"]), _bar(about, LATENTS)
    vae = wan_vae_from(golden.tensors(folder, about["weights"]), source=about["weights"])
    vae = vae.to(golden.device, golden.dtype)
    latents = reference["latents"].to(golden.device)
    decoder = WanDecoder(vae)
    yield golden.compare(case, "decoded at once", decoder.decode(latents), reference["decode_full"], bar)
    decoder.reset()
    streamed = torch.cat([decoder.decode(part) for part in latents.split(2, dim=1)], dim=1)
    yield golden.compare(case, "decoded as a stream", streamed, reference["decode_full"], bar)
    for name in (each for each in reference if each.startswith("decode_chunk")):
        chunks = []
        for part in latents.split(int(name.removeprefix("decode_chunk")), dim=1):
            decoder.reset()
            chunks.append(decoder.decode(part))
        yield golden.compare(case, name, torch.cat(chunks, dim=1), reference[name], bar)
    if "encode" in reference:
        pixels = reference["pixels"].transpose(1, 2).to(golden.device, golden.dtype)
        yield golden.compare(case, "encoded", encode_video(vae, pixels), reference["encode"], bar)


# --- files ------------------------------------------------------------------------------------------


def _formats(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    heads = about["arch"]["num_heads"]
    for name in sorted(about["files"]):
        content = read_file(folder / name)
        if "lora" in name:
            lora = lora_state(content, source=name)
            state = generator_state(read_file(folder / "generator.pt"), ema=False)
            merge_lora(state, lora, alpha=1.0, source=name)
            yield Check(case, name, 0.0, 0.0, f"{len(lora)} tensors fit the generator")
        elif name.startswith("ae"):
            sizes = load_encoder(folder / name).config
            yield Check(case, name, 0.0, 0.0, f"embeddings of {sizes.latent_dim}")
        else:
            state = generator_state(content, ema="ema" in name, source=name)
            load_transformer(state, source=name, heads=heads)
            sums = {key.removeprefix("model."): value for key, value in about["checksum"].items()}
            errors = [abs(float(state[key].double().abs().sum()) - value) for key, value in sums.items()]
            yield Check(case, name, max(errors), 1e-3, f"{len(state)} tensors")


def _manifest(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Full-size checkpoints without data: every name and shape must fit our modules, on the meta device."""
    shapes = {name: entry["shape"] if isinstance(entry, dict) else entry for name, entry in about["tensors"].items()}
    fake = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    modules: tuple[nn.Module, dict[str, Tensor]]
    with torch.device("meta"):
        if "generator" in case:
            from diffusers import WanTransformer3DModel

            state = generator_state(fake, ema=False)
            model = WanTransformer3DModel(**transformer_config(state, heads=about["arch"]["num_heads"]))
            modules = model, {diffusers_name(name): tensor for name, tensor in state.items()}
        elif "config" in about and "latent_dim" in about["config"]:
            modules = LatentAutoencoder(EncoderConfig.model_validate(about["config"])), fake
        elif "vae" in case:
            from diffusers import AutoencoderKLWan

            names = about["diffusers_names"]
            modules = AutoencoderKLWan(), {names[name]: tensor for name, tensor in fake.items()}
        else:
            return
    expected = {name: tensor.shape for name, tensor in modules[0].state_dict().items()}
    ours = {name: tensor.shape for name, tensor in modules[1].items()}
    wrong = sum(expected.get(name) != ours.get(name) for name in expected.keys() | ours.keys())
    yield Check(case, "names and shapes that do not fit", float(wrong), 0.0, f"{len(ours)} tensors")
