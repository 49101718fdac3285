"""``llrag evaluate-encoder``: which keys find what matters, side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.formatting import counted

if TYPE_CHECKING:
    from torch import Tensor

    from llrag_cli.evaluation.encoder.quality import Quality
    from llrag_cli.models.embedded.vae import TinyDecoder


@dataclass(frozen=True)
class EvaluateEncoderRequest:
    """What was asked for on the command line."""

    encoders: tuple[Path, ...]
    latents: Path | None
    out: Path | None
    videos: int
    seconds: float
    count: int
    vision: str | None
    seed: int
    as_json: bool


def run(request: EvaluateEncoderRequest) -> None:
    """Judge every descriptor on the same videos."""
    if request.videos < 1 or request.count < 1 or not 10 <= request.seconds <= 3600:
        raise UsageError(
            f"{request.videos} videos of {request.seconds:g} s with {request.count} recalled cannot be judged",
            hint="`--videos` and `--count` are at least 1, `--seconds` from 10 to 3600",
        )
    for path in request.encoders:
        if not path.is_file():
            raise UsageError(f"there is no file `{path}`", hint="`llrag train-encoder` makes one")
    with console.working("loading"):
        from llrag_cli.evaluation.encoder.descriptors import encoder_descriptor, plain_descriptors, vision_descriptor
        from llrag_cli.evaluation.encoder.quality import Geometry, quality
        from llrag_cli.models.embedded.family import FAMILY as EMBEDDED

        sets = _sets(request)
        first = next(iter(sets.values())).videos[0]
        shape = (first.shape[1], first.shape[2], first.shape[3])
        descriptors = plain_descriptors()
        if request.vision is not None:
            descriptors[Path(request.vision).name] = vision_descriptor(request.vision, _decoder(shape))
        encoders = request.encoders or ((EMBEDDED.bundled_encoder,) if request.latents is None else ())
        for path in encoders:
            descriptors["embedded encoder" if path == EMBEDDED.bundled_encoder else str(path)] = encoder_descriptor(
                path, shape
            )
    judged: dict[str, dict[str, Quality]] = {title: {} for title in sets}
    with console.counting("judging", total=len(descriptors) * len(sets)) as advance:
        for title, each in sets.items():
            for name, describe in descriptors.items():
                keys = [describe(video) for video in each.videos]
                judged[title][name] = quality(keys, Geometry(count=request.count), each.labels)
                advance(1, name)
    if request.latents is None and not all(found.queries for table in judged.values() for found in table.values()):
        raise UsageError("the videos are too short for anything to come back", hint="raise `--seconds`")
    if request.out is not None:
        _write(request.out, judged, request.count)
    if request.as_json:
        told = {title: {name: asdict(found) for name, found in table.items()} for title, table in judged.items()}
        console.result_json(told)
        return
    for title, table_ in judged.items():
        console.result_table(table(title, table_, request.count))
        console.result("")


@dataclass(frozen=True)
class _Set:
    """Videos to judge on, and what each of their frames shows, where that is known."""

    videos: list[Tensor]
    labels: list[Tensor] | None


def _sets(request: EvaluateEncoderRequest) -> dict[str, _Set]:
    """What to judge on, by title."""
    if request.latents is not None:
        from llrag_cli.training.encoder.data import LatentPool

        pool = LatentPool(request.latents)
        videos = [pool.frames(video) for video in range(min(request.videos, len(pool)))]
        return {f"{counted(len(videos), 'video')} of {request.latents}": _Set(videos, None)}
    from llrag_cli.models.embedded.model import load_embedded
    from llrag_cli.world.panorama import WORLDS, make_panorama

    vae = load_embedded()[2]
    sets = {}
    for world, changing in itertools.product(WORLDS, (False, True)):
        seeds = range(request.videos * request.seed, request.videos * (request.seed + 1))
        made = [
            make_panorama(vae.encode, world, seconds=request.seconds, seed=seed, changing_light=changing)
            for seed in seeds
        ]
        light = "changing light" if changing else "steady light"
        title = f"objects differ in {world}, {light}: {counted(len(made), 'video')} of {request.seconds:g} s"
        sets[title] = _Set([each.latents for each in made], [each.labels for each in made])
    return sets


def _decoder(shape: tuple[int, int, int]) -> TinyDecoder:
    from llrag_cli.models.embedded.model import LATENT, load_embedded
    from llrag_cli.models.embedded.vae import TinyDecoder

    if shape != LATENT:
        raise LlragError("only latents of the embedded model can be decoded here", hint="leave `--vision` out")
    return TinyDecoder(load_embedded()[2])


def table(title: str, judged: Mapping[str, Quality], count: int) -> Table:
    """The results for people."""
    rows = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    rows.add_column("keys")
    for heading in (f"recall@{count}", "unguarded", "MRR", "cos 1 apart", "cos 8 apart", "near guard", "rank"):
        rows.add_column(heading, justify="right")
    for name, found in judged.items():
        recall = "-"
        if found.recall is not None and found.recall_interval is not None:
            recall = "{:.3f} [{:.2f}, {:.2f}]".format(found.recall, *found.recall_interval)
        answers = [found.unguarded_recall, found.reciprocal_rank]
        cells = [recall, *("-" if value is None else f"{value:.3f}" for value in answers)]
        cells += [f"{found.similarity[lag]:.3f}" if lag in found.similarity else "-" for lag in (1, 8)]
        rows.add_row(name, *cells, f"{100 * found.near_guard:.0f} %", f"{found.effective_rank:.1f}")
    return rows


def _write(folder: Path, judged: Mapping[str, Mapping[str, Quality]], count: int) -> None:
    from llrag_cli.training.encoder.report import encoder_comparison

    content = {title: {name: asdict(found) for name, found in table.items()} for title, table in judged.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "encoders.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / "encoders.png").write_bytes(encoder_comparison(judged, count))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"`{folder}` cannot be written: {reason}", hint="choose another `--out`") from error
