"""Golden rollouts, replayed under the engine's own loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.cache.rotary import rotate
from llrag_cli.engine.rollout import Block, denoise, retrieve, rollout
from llrag_cli.engine.shots import Change, Cursor
from llrag_cli.memory.context import retrievable
from llrag_cli.memory.encoder import LatentAutoencoder, encoder_from
from llrag_cli.memory.history import History, KeyEncoder, average_pool
from llrag_cli.memory.strategies import MemoryConfig, Nearest, RetrievalMemory, SlidingWindow
from llrag_cli.models.wan.transformer import WanBackbone
from llrag_cli.parity.checks import FINE, HALF_ROLLOUT, LATENTS, Check, Golden, bar_of, read_json
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule


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
    window, sink = model["local_attn_size"], model["sink_size"]
    recache: Literal["keep", "renew"] = "keep" if config.get("global_sink", True) else "renew"
    if model.get("use_infinite_attention", False):  # the times of its frames are their slots, as with retrieval
        return Nearest(window=window, sink=sink, retrieved=0, recache=recache)
    if not model.get("use_latentmem", False):
        return SlidingWindow(window=None if window < 0 else window, sink=sink, recache=recache)
    return Nearest(
        window=window,
        sink=sink,
        retrieved=model.get("memory_size", 0),
        guard=model.get("recent_exclude", 0),
        keys="encoder" if model.get("compression_method") == "ae" else "average",
    )


@dataclass
class Replay:
    """A rollout under the engine's own loop, with intermediate tensors."""

    latents: Tensor
    blocks: list[Block]
    seen: dict[str, Tensor]
    passes: list[tuple[int, float]]  # first frame and timestep of each pass
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
    given: int = 0,
    prompts: Sequence[int] = (),
    switches: Mapping[int, int] | None = None,
    wanted: Sequence[str] = (),
    memory: MemoryConfig | None = None,
) -> Replay:
    """``prompts`` are rows of the embeddings, one for each prompt; by default, the first ``batch`` rows are a batch.

    ``switches`` are the numbers of the blocks at which later prompts take over, and which prompt it is. ``memory`` is
    by default that of the original's configuration.
    """
    memory = memory or memory_of(config)
    if isinstance(memory, Nearest) and memory.retrieves:
        memory = memory.model_copy(update={"archive": golden.archive})
    schedule = FlowMatchSchedule(
        steps=config["denoising_step_list"],
        shift=config["model_kwargs"]["timestep_shift"],
        warp=config["warp_denoising_step"],
        first_steps=config.get("denoising_step_list_first_chunk"),
    )
    block = config["num_frame_per_block"]
    tap = Tap(backbone, schedule, wanted, block=block, memory=memory)
    history = History(encode)
    embeddings = inputs["prompt_embeds"]
    prompt = embeddings[prompts[0], None] if prompts else embeddings[:batch]
    changes = {at: Change(embeddings[prompts[number], None]) for at, number in (switches or {}).items()}
    if given:
        changes[0] = Change(prompt, given=inputs["initial_latent"][:batch, :given])
    blocks = list(
        rollout(
            tap,
            prompt,
            frames=frames,
            shape=(*inputs["noise"].shape[2:],),
            block=block,
            schedule=tap.schedule,
            memory=memory,
            history=history,
            noise=RecordedNoise(inputs["noise"], inputs["renoise"]),
            context_timestep=float(config["context_noise"]),
            changes=changes,
        )
    )
    return Replay(torch.cat([each.latents for each in blocks], dim=1), blocks, tap.seen, tap.passes, history)


class Tap:
    """A backbone that records what passes through it, under the names of the golden files."""

    def __init__(
        self,
        inner: WanBackbone,
        schedule: FlowMatchSchedule,
        wanted: Sequence[str],
        *,
        block: int,
        memory: MemoryConfig,
    ) -> None:
        self.inner, self.window, self.block = inner, memory.window, block
        self.relative = isinstance(memory, RetrievalMemory)
        self.seen: dict[str, Tensor] = {}
        self.passes: list[tuple[int, float]] = []
        self.schedule = _TappedSchedule(schedule, self)
        self._wanted = {name.split(".")[0] + "." + name.split(".")[1] for name in wanted if "." in name}
        self._block = self._call = self._start = self._switches = 0
        self._context: Context | None = None
        layers = inner.transformer.blocks
        for index, layer in enumerate(layers):
            layer.register_forward_hook(self._layer_hook(index))
        if len(layers) > 1:
            layers[1].attn1.register_forward_hook(self._attention_hook)

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)
    layers = property(lambda self: self.inner.layers)
    sharing = property(lambda self: self.inner.sharing)

    def start(self, prompt: Tensor, cache: WanKVCache) -> Tap:
        """As ``Backbone.start``; it records one video."""
        self._block = -1
        self._session = self.inner.start(prompt, cache)
        return self

    def set_prompt(self, prompt: Tensor) -> None:
        """As ``BackboneSession.set_prompt``."""
        self._session.set_prompt(prompt)

    def set_context(self, context: Context, *, start: int, block: int, height: int, width: int) -> None:
        """As ``BackboneSession.set_context``; the block's number and the cache before it are recorded."""
        self._block, self._call, self._start, self._context = start // block, 0, start, context
        self._size = self.inner.grid(height, width)
        self._session.set_context(context, start=start, block=block, height=height, width=width)
        for call in (0, 1):
            name = f"block{self._block}.call{call}"
            if name in self._wanted:
                self._record_cache(name, end=start + (block if call else 0), layer=1)

    def set_reading(self, *, retrieved: bool) -> None:
        """As ``BackboneSession.set_reading``."""
        self._session.set_reading(retrieved=retrieved)

    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """As ``BackboneSession.flow``."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.call{self._call}.timestep"] = timestep.reshape(1, 1).expand(noisy.shape[:2]).clone()
        flow = self._session.flow(noisy, timestep)
        self.passes.append((self._start, float(timestep)))
        self._call += 1
        return flow

    def recache(self, context: Context, latents: Tensor, *, start: int, timestep: float) -> None:
        """As ``BackboneSession.recache``; the flow of the pass and the last layer's cache after it are recorded."""
        name, size = f"switch{self._switches}", {"height": latents.shape[3], "width": latents.shape[4]}
        self._session.set_context(context, start=start, block=latents.shape[1], **size)
        self.seen[f"{name}.flow"] = self._session.flow(latents, torch.tensor(timestep))
        self._session.recache(context, latents, start=start, timestep=timestep)
        end = start + latents.shape[1]
        self._size = self.inner.grid(*latents.shape[3:])
        keys, values = self._slots(self.inner.layers - 1, end=end)
        self.seen |= {f"{name}.k": keys, f"{name}.v": values}
        self._switches += 1

    def update_cache(self, latents: Tensor, timestep: float, prefetch: Sequence[Sequence[int]] = ()) -> None:
        """As ``BackboneSession.update_cache``; a recorded block runs its clean pass to the end first."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.clean_pass.flow"] = self.flow(latents, torch.tensor(timestep))
        self._call = -1
        self.passes.append((self._start, timestep))
        self._session.update_cache(latents, timestep, prefetch)

    def close(self) -> None:
        """As ``BackboneSession.close``; what the window holds is recorded, in the original's slots."""
        if "final_cache.layer0" in self._wanted:
            keys, values = self._slots(0, end=self._start + self.block)
            self.seen |= {"final_cache.layer0.k": keys, "final_cache.layer0.v": values}
        if "final.k" in self._wanted:
            keys, values = self._slots(self.inner.layers - 1, end=self._start + self.block)
            self.seen |= {"final.k": keys, "final.v": values}
        self._session.close()

    def record_clean(self, latents: Tensor) -> None:
        """Record a prediction of x0 after the latest call."""
        name = f"steps.block{self._block:02d}"
        if name in self._wanted:
            self.seen[f"{name}.step{self._call - 1}.x0"] = latents

    def _slots(self, layer: int, *, end: int) -> tuple[Tensor, Tensor]:
        """Keys as the original keeps them (the native model's rotated) and values [B, slots * tokens, heads, D]."""
        pages = self._session.cache.layers[layer]
        sink, sink_start = pages.pages.sink, pages.pages.sink_start
        first = 0 if self.window is None else max(0, end - self.window)
        frames = [*range(sink_start, min(sink_start + sink, end)), *range(first + sink, end)]
        keys, values = (part.flatten(1, 2) for part in pages.pages.read(frames))
        if not self.relative:
            height, width = self._size
            times = torch.tensor(frames, dtype=torch.float64)
            keys = rotate(keys, self.inner.rotary.table(times, height=height, width=width).to(keys.device))
        return keys, values

    def _record_cache(self, name: str, *, end: int, layer: int) -> None:
        if end == self._start:  # later calls have the block's own slots in it, half done
            keys, values = self._slots(layer, end=end)
            self.seen |= {f"{name}.cache_k_before": keys, f"{name}.cache_v_before": values}
        assert self._context is not None
        if self._context.retrieved:
            keys, values = self._session.cache.retrieved(layer, self._context.retrieved)
            self.seen |= {f"{name}.memory_k": keys.flatten(0, 1), f"{name}.memory_v": values.flatten(0, 1)}

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
    """The sampler's schedule, recording each prediction."""

    def __init__(self, inner: FlowMatchSchedule, tap: Tap) -> None:
        self.sigmas, self.timesteps = inner.sigmas, inner.timesteps
        self.steps, self.first_steps = inner.steps, inner.first_steps
        self._tap = tap

    def clean(self, noisy: Tensor, flow: Tensor, timestep: Tensor) -> Tensor:
        clean = super().clean(noisy, flow, timestep)
        self._tap.record_clean(clean)
        return clean


def generation(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """A rollout, native or with retrieval, whose first blocks may be given."""
    config = about["config"]
    if about.get("optional"):
        yield Check(case, "latents", None, 0.0, "optional: a sink longer than a block is not run the original's way")
        return
    reference = golden.tensors(folder, about["file"])
    inputs = golden.tensors(folder, about["inputs"])
    encode: KeyEncoder = average_pool
    if config["model_kwargs"].get("compression_method") == "ae":
        encode = encoder_of(golden, folder, about["ae_weights"])
    batch, frames = reference["latents"].shape[:2]
    backbone = golden.backbone(folder, about["weights"])
    replay = _replay(
        golden,
        backbone,
        config,
        inputs,
        frames=frames,
        batch=batch,
        encode=encode,
        given=about.get("given_frames", 0),
        wanted=list(reference),
    )
    if "passes" in about:
        yield _passes(case, about["passes"], replay.passes)
    yield from _compare_rollout(golden, case, about, replay, reference, encode)


def prompt_switch(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """A rollout whose prompt changes: its latents, and the window as it was computed again for each new prompt."""
    reference = golden.tensors(folder, about["file"])
    replay = _replay(
        golden,
        golden.backbone(folder, about["weights"]),
        about["config"],
        golden.tensors(folder, about["inputs"]),
        frames=reference["latents"].shape[1],
        batch=1,
        encode=average_pool,
        prompts=about["prompt_rows"],
        switches=switch_blocks(about["switch_frames"], block=about["config"]["num_frame_per_block"]),
    )
    if not golden.exact:
        yield golden.compare(case, "latents", replay.latents, reference["latents"], LATENTS, half=HALF_ROLLOUT)
        return
    bar = bar_of(about, LATENTS)
    yield golden.compare(case, "latents", replay.latents, reference["latents"], bar)
    for quantity, ending in (("flow of the recomputed window", "flow"), ("its keys and values", "kv")):
        names = [name for name in reference if name.startswith("switch") and name.split(".")[1] in ending]
        checks = []
        for name in names:
            ours = replay.seen[name]
            theirs = reference[name]
            if ending == "flow":  # a sink that is kept is not computed again
                theirs = theirs[:, theirs.shape[1] - ours.shape[1] :]
            checks.append(golden.compare(case, quantity, ours, theirs, bar))
        yield max(checks, key=lambda check: check.error or 0.0)


def commit_rule(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """A rollout whose clean passes attend to the newest frames alone: its latents, and the newest keys and values."""
    reference = golden.tensors(folder, about["file"])
    replay = _replay(
        golden,
        golden.backbone(folder, about["weights"]),
        about["config"],
        golden.tensors(folder, about["inputs"]),
        frames=reference["latents"].shape[1],
        batch=1,
        encode=average_pool,
        prompts=[about["prompt_row"]],
        wanted=list(reference),
        memory=committing_memory(about),
    )
    yield golden.compare(
        case, "latents", replay.latents, reference["latents"], bar_of(about, LATENTS), half=HALF_ROLLOUT
    )
    newest = {name: theirs for name, theirs in reference.items() if name.startswith("final.")}
    if newest and golden.exact:
        bar = float(about["tolerance"]["kv_recommended_atol"])
        checks = [
            golden.compare(case, "newest keys and values", replay.seen[name][:, -theirs.shape[1] :], theirs, bar)
            for name, theirs in newest.items()
        ]
        yield max(checks, key=lambda check: check.error or 0.0)


def committing_memory(about: Mapping[str, Any]) -> MemoryConfig:
    """The memory of a case of the commit rule.

    A sink that is ``moved`` next to the newest frames has the times of slots: only differences of times matter.
    """
    frames, sizes = about["commit_frames"], about["config"]["model_kwargs"]
    sink = sizes["sink_size"]
    rule: dict[str, Any] = {} if frames is None else {"commit": "recent", "commit_frames": frames}
    if about.get("sink_positions") == "moved":
        return Nearest(window=sink + about["recent_frames"], sink=sink, retrieved=0, **rule)
    return SlidingWindow(window=sizes["local_attn_size"], sink=sink, **rule)


def read_locus(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """A rollout without sink whose last layers attend to frames far back in the last denoising steps.

    Every pass attends to the newest ``near_frames``. The far frames are the newest of each group of ``stride`` before
    them, and count ``stride`` times each: their logits are raised by ln(stride), which is the same. Up to ``stride``
    far frames are attended to as they are. Times are absolute, and clean passes attend to no far frames.
    """
    config, reference = about["config"], golden.tensors(folder, about["file"])
    inputs, backbone = golden.tensors(folder, about["inputs"]), golden.backbone(folder, about["weights"])
    near, stride, block = about["near_frames"], about["stride"], config["num_frame_per_block"]
    held = config["model_kwargs"]["local_attn_size"]
    schedule = FlowMatchSchedule(
        steps=config["denoising_step_list"],
        shift=config["model_kwargs"]["timestep_shift"],
        warp=config["warp_denoising_step"],
    )
    far_by_step = {int(name.removeprefix("step")): layers for name, layers in about["far"].items()}
    reading = last(far_by_step, len(schedule.steps))
    (layers,) = {last(layers, backbone.layers) for layers in far_by_step.values()}
    frames, (height, width) = reference["latents"].shape[1], reference["latents"].shape[3:]
    cache = WanKVCache(layers=backbone.layers, sink=0, recent=None, frames=frames, unread=backbone.layers - layers)
    prompt = inputs["prompt_embeds"][about["prompt_row"], None]
    session, noise = backbone.start(prompt, cache), RecordedNoise(inputs["noise"], inputs["renoise"])
    blocks = []
    for index, start in enumerate(range(0, frames, block)):
        recent = tuple(range(max(0, start + block - near), start))
        plain = Context(recent, recent, start)
        far = far_frames(end=start + block, near=near, stride=stride, held=held)
        context = replace(plain, retrieved=(far,), retrieved_times=(far,)) if far else plain
        session.set_context(context, start=start, block=block, height=height, width=width)
        shape = (1, block, *inputs["noise"].shape[2:])
        latents = denoise(session, schedule, noise, steps=schedule.steps, block=index, shape=shape, reading=reading)
        session.set_context(plain, start=start, block=block, height=height, width=width)
        session.update_cache(latents, float(config["context_noise"]))
        blocks.append(latents)
    session.close()
    made = torch.cat(blocks, dim=1)
    yield golden.compare(case, "latents", made, reference["latents"], bar_of(about, LATENTS), half=HALF_ROLLOUT)


def far_frames(*, end: int, near: int, stride: int, held: int) -> tuple[int, ...]:
    """Frames that a block up to frame ``end`` attends to before the newest ``near``, each as often as it counts.

    They are among the newest ``held``, which are in the cache.
    """
    count = min(held, end)
    if count <= near + stride:
        return tuple(range(end - count, end - near))
    chosen = range(end - near - 1, end - count - 1 + stride - 1, -stride)
    return tuple(frame for frame in chosen for _ in range(stride))


def last(numbers: Iterable[int], total: int) -> int:
    """How many numbers there are, which must be the last ones below ``total``."""
    count = len({*numbers})
    if {*numbers} != {*range(total - count, total)}:
        raise ValueError(f"{sorted(numbers)} are not the last of {total}")
    return count


def switch_blocks(frames: Sequence[int], *, block: int) -> dict[int, int]:
    """The number of the prompt by the block it takes over at: from its frame on, at most one prompt a block."""
    switches: dict[int, int] = {}
    for number, frame in enumerate(frames, start=1):
        switches[max(math.ceil(frame / block), max(switches, default=-1) + 1)] = number
    return switches


def encoder_of(golden: Golden, folder: Path, weights: str) -> LatentAutoencoder:
    """The retrieval encoder of a case."""
    sizes = read_json(folder / Path(weights).with_suffix(".json"))["ae_config"]
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
    """Latents, descriptors, retrieved frames, and intermediate tensors."""
    bar = bar_of(about, LATENTS)
    latents = reference[f"{prefix}latents"]
    if not golden.exact:
        yield from _compare_half(golden, case, about, replay, latents, encode)
        return
    yield golden.compare(case, "latents", replay.latents, latents, bar)
    if "descriptors" in reference:
        ours = encode(replay.latents.flatten(0, 1)).unflatten(0, replay.latents.shape[:2])
        yield golden.compare(case, "descriptors", ours, reference["descriptors"], FINE)
    log = about.get("memory_indices_log", [])
    retrieved = {block.start: block.retrieved for block in replay.blocks if block.retrieved}
    if log or retrieved:
        yield _selections(case, log, retrieved)
    similar = [name for name in reference if name.startswith("similarities.")]
    if similar:
        yield _similarities(golden, case, similar, reference, replay, memory_of(about["config"]))
    groups: dict[str, list[Check]] = {}
    for name, ours in replay.seen.items():
        if name in reference and not prefix:
            quantity = _quantity(name)
            groups.setdefault(quantity, []).append(golden.compare(case, quantity, ours, reference[name], bar))
    for checks in groups.values():
        yield max(checks, key=lambda check: check.error or 0.0)


def _compare_half(
    golden: Golden, case: str, about: Mapping[str, Any], replay: Replay, latents: Tensor, encode: KeyEncoder
) -> Iterator[Check]:
    """Frames retrieved on the original's latents, and latents up to the first block that retrieves other frames."""
    log, frames = about.get("memory_indices_log", []), latents.shape[1]
    same = frames
    if log:
        size = replay.blocks[0].latents.shape[1]
        given = _retrieved_given(golden, latents, memory_of(about["config"]), encode, block=size)
        check = _selections(case, log, given)
        yield replace(check, note=f"{check.note}, on the original's latents")
        ours = {block.start: block.retrieved for block in replay.blocks}
        same = next((entry["query_frame"] for entry in log if ours[entry["query_frame"]] != _frames_of(entry)), frames)
    check = golden.compare(case, "latents", replay.latents[:, :same], latents[:, :same], LATENTS, half=HALF_ROLLOUT)
    yield check if same == frames else replace(check, note=f"{check.note}, until other frames are retrieved at {same}")


def _quantity(name: str) -> str:
    """A readable name for a group of tensors."""
    for mark, quantity in (
        ("timestep", "timesteps"),
        (".x0", "x0 after each step"),
        ("clean_pass", "flow of the clean pass"),
        ("layers.", "tokens through the layers"),
        ("memory_", "retrieved keys and values"),
        ("cache", "cached keys and values"),
    ):
        if mark in name:
            return quantity
    return "self-attention"


Retrieved = Mapping[int, list[list[int]]]  # frames [B][K] by first frame of the block


def _frames_of(entry: Mapping[str, Any]) -> list[list[int]]:
    """The frames that an entry of the original's log names."""
    frames: list[list[int]] = entry["selected_global_frames"]
    return frames


def _selections(case: str, log: Sequence[Mapping[str, Any]], ours: Retrieved) -> Check:
    """How many blocks retrieved other frames, or in another order."""
    expected = {entry["query_frame"]: _frames_of(entry) for entry in log}
    wrong = sum(expected.get(frame) != ours.get(frame) for frame in expected.keys() | ours.keys())
    return Check(case, "retrieved frames", float(wrong), 0.0, f"{len(expected)} queries")


def _retrieved_given(
    golden: Golden, latents: Tensor, memory: MemoryConfig, encode: KeyEncoder, *, block: int
) -> Retrieved:
    """What each block retrieves from recorded latents [B, F, C, H, W], rounded as those of a rollout are."""
    history, cursor, retrieved = History(encode), Cursor(memory, AddressedNoise(0), block=block), {}
    for start, part in zip(range(0, latents.shape[1], block), latents.split(block, dim=1), strict=True):
        frames, _ = retrieve(history, memory, cursor, start=start, draw=_unused)
        if frames:
            retrieved[start] = frames
        history.append(part.to(golden.device, golden.dtype))
    return retrieved


def _unused() -> Tensor:
    raise NotImplementedError("the original's memory needs neither drafts nor random numbers")


def _passes(case: str, expected: Sequence[tuple[int, float]], ours: Sequence[tuple[int, float]]) -> Check:
    """The largest difference of a timestep; infinite if there are other passes."""
    if [frame for frame, _ in expected] != [frame for frame, _ in ours]:
        return Check(case, "timestep of each pass", float("inf"), 1e-3, f"{len(ours)} passes, not {len(expected)}")
    worst = max(abs(one - other) for (_, one), (_, other) in zip(expected, ours, strict=True))
    return Check(case, "timestep of each pass", worst, 1e-3, f"{len(ours)} passes")


def _similarities(
    golden: Golden,
    case: str,
    names: Sequence[str],
    reference: Mapping[str, Tensor],
    replay: Replay,
    memory: MemoryConfig,
) -> Check:
    keys, worst = replay.history.keys, Check(case, "similarities", 0.0, FINE)
    assert isinstance(memory, Nearest)
    for name in names:
        start = int("".join(character for character in name if character.isdigit()))
        pool = retrievable(start=start, window=memory.window, sink=memory.sink, guard=memory.guard)
        cosines = torch.bmm(keys[:, pool.start : pool.stop], keys[:, start - 1, :, None])[..., 0]
        check = golden.compare(case, "similarities", cosines, reference[name], FINE)
        worst = max(worst, check, key=lambda each: each.error or 0.0)
    return worst


def lora(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """One flow with and without a LoRA, and short rollouts with it."""
    reference = golden.tensors(folder, about["file"])
    inputs = golden.tensors(folder, about.get("inputs", "inputs.safetensors"))
    x = reference["x"].to(golden.device, golden.dtype)
    stated = re.search(r"timestep ([\d.]+)", about.get("forward", ""))
    timestep = torch.tensor(float(stated[1]) if stated else 937.5)
    shift = next(iter(about["generations"].values()))["config"]["model_kwargs"]["timestep_shift"]
    for name, adapter, alpha in (
        ("base", None, 1.0),
        ("lora", about["lora"], about["alpha"]["lora"]),
        ("lora_other_alpha", about["lora"], about["alpha"]["lora_other_alpha"]),
    ):
        backbone = golden.backbone(folder, about["weights"], lora=adapter, alpha=alpha)
        one = rollout(
            (first := _FirstPass(backbone)),
            inputs["prompt_embeds"][:1],
            frames=x.shape[1],
            shape=(*x.shape[2:],),
            block=x.shape[1],
            schedule=FlowMatchSchedule(steps=[1000], shift=shift),
            memory=SlidingWindow(window=None),
            history=History(average_pool),
            noise=RecordedNoise(reference["x"], reference["x"][None]),
        )
        first.timestep = timestep
        next(one)
        assert first.result is not None
        yield golden.compare(case, f"{name}: flow", first.result, reference[f"{name}.flow"], LATENTS)
        if f"{name}.x0" in reference:
            schedule = FlowMatchSchedule(steps=[1000], shift=shift)
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
    """A backbone that records one flow, at a timestep of its own choice."""

    def __init__(self, inner: WanBackbone) -> None:
        self.inner = inner
        self.timestep = torch.tensor(1000.0)
        self.result: Tensor | None = None
        self.layers, self.sharing = inner.layers, inner.sharing

    def start(self, prompt: Tensor, cache: WanKVCache) -> _FirstPass:
        """As ``Backbone.start``."""
        self._session = self.inner.start(prompt, cache)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def flow(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """As ``BackboneSession.flow``."""
        self.result = self._session.flow(noisy, self.timestep)
        return self.result
