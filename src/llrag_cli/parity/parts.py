"""Golden vectors of single parts: network units, sampler, retrieval encoder, VAE."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.cache.rotary import RotaryTables, rotate
from llrag_cli.memory.encoder import LatentAutoencoder
from llrag_cli.models.wan.transformer import Timesteps64, WanBackbone
from llrag_cli.models.wan.vae import WanDecoder, encode_video, wan_vae_from
from llrag_cli.parity.checks import FINE, LATENTS, TABLES, Check, Golden, bar_of, read_json
from llrag_cli.parity.generation import encoder_of
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.training.encoder.losses import LossWeights, encoder_loss


def units(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Rotary tables, embeddings, unpatchify and norms."""
    reference = golden.tensors(folder, about["file"])
    backbone = golden.backbone(folder, about["weights"])
    model, bar = backbone.transformer, bar_of(about, FINE)
    device, dtype = golden.device, golden.dtype
    with torch.no_grad():
        for name in reference:
            if name.startswith("rope.d") and name.endswith(".cos"):
                size = int(name.split(".")[1][1:])
                positions = reference[f"rope.d{size}.positions"]
                rotary = RotaryTables(size)
                angles = torch.cat([positions.double()[:, None] * part for part in rotary.frequencies], dim=1)
                yield golden.compare(case, f"rotary cosines, heads of {size}", angles.cos(), reference[name], bar)
                sines = reference[f"rope.d{size}.sin"]
                yield golden.compare(case, f"rotary sines, heads of {size}", angles.sin(), sines, bar)
        height, width = (
            side // patch for side, patch in zip(reference["patch.latents"].shape[3:], (2, 2), strict=True)
        )
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
        inputs = about.get("inputs", "inputs.safetensors")
        if (folder / inputs).exists():
            prompt = golden.tensors(folder, inputs)["prompt_embeds"].to(device, dtype)
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


def _unpatchify(golden: Golden, case: str, backbone: WanBackbone, reference: Mapping[str, Tensor], bar: float) -> Check:
    """The transformer's own unpatchify, reached by replacing its last projection by given tokens."""
    model, expected = backbone.transformer, reference["unpatchify.latents"]
    tokens = reference["unpatchify.tokens_arange"].to(golden.device, golden.dtype)
    handle = model.proj_out.register_forward_hook(lambda module, args, output: tokens)
    frames = torch.zeros(1, *expected.shape, device=golden.device)
    cache = WanKVCache(layers=backbone.layers, sink=0, recent=None, frames=len(expected))
    session = backbone.start(torch.zeros(1, 1, model.config.text_dim), cache)
    size = {"height": expected.shape[2], "width": expected.shape[3]}
    session.set_context(Context((), (), 0), start=0, block=expected.shape[0], **size)
    latents = session.flow(frames.to(golden.dtype), torch.tensor(500.0))[0]
    handle.remove()
    return golden.compare(case, "unpatchify", latents, expected, bar)


def scheduler(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Tables, warped steps, add-noise and flow to x0."""
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
                yield exact.compare(case, f"{prefix}: {name}", result.cpu(), own[name].cpu(), bar_of(about, TABLES))


def autoencoder(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """The retrieval encoder: embeddings, losses, gradients, one training step."""
    reference = golden.tensors(folder, about["file"])
    model = encoder_of(golden, folder, about["weights"]).to(golden.dtype)
    chunk = reference["chunk"].to(golden.device, golden.dtype)
    frames, bar = chunk.flatten(0, 1), bar_of(about, FINE)
    embedding = model.encoder(frames)
    yield golden.compare(case, "embedding", embedding, reference["embedding"], bar)
    yield golden.compare(case, "unit embedding", model(frames), reference["embedding_normalized"], bar)
    decoded = model.decoder(embedding)
    yield golden.compare(case, "reconstruction", decoded, reference["reconstruction"], bar, relative=FINE)
    if not golden.exact:
        return
    for part in ("total", "recon", "delta", "smooth"):
        worst = Check(case, f"loss: {part}", 0.0, bar)
        for expected in about["loss_values"].values():
            fields = {key: expected[key] for key in LossWeights.__dataclass_fields__ if key in expected}
            cut = re.search(r":\s*(\d+)\]", expected.get("input", ""))  # as in "chunk[:, :2]"
            length = int(cut[1]) if cut else chunk.shape[1]
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
    model.requires_grad_(requires_grad=True)
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


def vae(golden: Golden, case: str, about: dict[str, Any], folder: Path) -> Iterator[Check]:
    """Wan's VAE at a tiny size, whole, streamed and in chunks."""
    reference, bar = golden.tensors(folder, about["file"]), bar_of(about, LATENTS)
    arch = read_json(folder / Path(about["weights"]).with_suffix(".json"))["arch"]
    model = wan_vae_from(
        golden.tensors(folder, about["weights"]),
        source=about["weights"],
        dim_mult=arch["dim_mult"],
        num_res_blocks=arch["num_res_blocks"],
        temperal_downsample=arch["temperal_downsample"],
    )
    model.to(golden.device)
    if golden.dtype != torch.float32:
        model.to(golden.dtype)
    latents = reference["latents"].to(golden.device)
    decoder = WanDecoder(model)
    yield golden.compare(case, "decoded at once", decoder.stream().decode(latents), reference["decode_full"], bar)
    stream = decoder.stream()
    streamed = torch.cat([stream.decode(part) for part in latents.split(2, dim=1)], dim=1)
    yield golden.compare(case, "decoded as a stream", streamed, reference["decode_full"], bar)
    for name in (each for each in reference if each.startswith("decode_chunk")):
        parts = latents.split(int(name.removeprefix("decode_chunk")), dim=1)
        chunks = [decoder.stream().decode(part) for part in parts]
        yield golden.compare(case, name, torch.cat(chunks, dim=1), reference[name], bar)
    if "encode" in reference:
        pixels = reference["pixels"].transpose(1, 2).to(golden.device, golden.dtype)
        yield golden.compare(case, "encoded", encode_video(model, pixels), reference["encode"], bar)
