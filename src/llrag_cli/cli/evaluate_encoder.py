"""``llrag evaluate-encoder``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from llrag_cli.cli.options import Json, Seconds
from llrag_cli.errors import NoLatentsError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from llrag_cli.evaluation.encoder.quality import Quality


def evaluate_encoder(
    encoders: Annotated[
        list[Path] | None, typer.Argument(help="Encoders to compare; default: the embedded one")
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Evaluate on these latents, without ground truth; default: the sprite world")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables (JSON, CSV) and the figure")] = None,
    videos: Annotated[int, typer.Option(help="Videos to evaluate on")] = 24,
    seconds: Annotated[float, typer.Option(help="Length of each, in the sprite world", **Seconds)] = 160.0,
    count: Annotated[int, typer.Option(help="K: frames retrieved for each query")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the scenes")] = 0,
    as_json: Json = False,
) -> None:
    """Measure the retrieval accuracy of encoders; average pooling and random projection are the baselines."""
    import json
    from dataclasses import asdict

    from llrag_cli.cli import console
    from llrag_cli.errors import UnwritableError
    from llrag_cli.files.durable import create_folder, replace_bytes, replace_text, require_own
    from llrag_cli.runs.folder import RunFolder

    if not 1 <= videos <= 1000 or not 1 <= count <= 1000 or not 10 <= seconds <= 3600:
        raise UsageError(
            f"cannot evaluate on {videos} videos of {seconds:g} s with {count} retrieved frames",
            hint="`--videos` and `--count` are 1 to 1000, `--seconds` from 10 to 3600",
        )
    for path in encoders or ():
        if not path.is_file():
            raise UsageError(f"no such file: `{path}`", hint="`llrag train-encoder` trains a retrieval encoder")
    if latents is not None and not latents.is_dir():
        raise NoLatentsError(latents)
    if out is not None:
        RunFolder(out).require_writable()
        for name in ("encoders.json", "encoders.png"):
            require_own(out / name)
    with console.working("loading"):
        from llrag_cli.evaluation.encoder.descriptors import encoder_descriptor, plain_descriptors
        from llrag_cli.evaluation.encoder.figure import encoder_comparison
        from llrag_cli.evaluation.encoder.quality import Geometry, quality
        from llrag_cli.evaluation.encoder.rows import as_csv
        from llrag_cli.models.embedded.family import FAMILY as EMBEDDED

        sets = _sprite_sets(videos, seconds, seed) if latents is None else _latent_sets(latents, videos)
        first = next(iter(sets.values())).videos[0]
        shape = (first.shape[1], first.shape[2], first.shape[3])
        descriptors = plain_descriptors()
        bundled = EMBEDDED.bundled_encoder
        for path in encoders or ([bundled] if latents is None else []):
            descriptors["embedded encoder" if path == bundled else str(path)] = encoder_descriptor(path, shape)
    tables: dict[str, dict[str, Quality]] = {title: {} for title in sets}
    with console.counting("evaluating", total=len(descriptors) * len(sets)) as advance:
        for title, videos_ in sets.items():
            for name, describe in descriptors.items():
                keys = [describe(video) for video in videos_.videos]
                tables[title][name] = quality(keys, Geometry(count=count), videos_.labels)
                advance(1, name)
    if latents is None and not all(row.queries for table in tables.values() for row in table.values()):
        raise UsageError("the videos are too short for any object to return", hint="increase `--seconds`")
    content = {title: {name: asdict(row) for name, row in table.items()} for title, table in tables.items()}
    if out is not None:
        try:
            create_folder(out)
            replace_text(out / "encoders.json", json.dumps(content, indent=1) + "\n")
            replace_text(out / "encoders.csv", as_csv(tables))
            replace_bytes(out / "encoders.png", encoder_comparison(tables, count))
        except OSError as error:
            raise UnwritableError(out, (error.strerror or str(error)).lower()) from error
    if as_json:
        console.result_json(content)
        return
    for title, table in tables.items():
        console.result_table(quality_table(title, table, count))
        console.result("")


class _Videos(NamedTuple):
    """Latents [F, C, H, W] of videos, and the object that each frame shows [F], where that is known."""

    videos: list[Tensor]
    labels: list[Tensor] | None


def _latent_sets(folder: Path, count: int) -> dict[str, _Videos]:
    from llrag_cli.formatting import counted
    from llrag_cli.training.encoder.data import LatentPool

    pool = LatentPool(folder)
    videos = [pool.frames(video) for video in range(min(count, len(pool)))]
    return {f"{counted(len(videos), 'video')} of {folder}": _Videos(videos, None)}


def _sprite_sets(count: int, seconds: float, seed: int) -> dict[str, _Videos]:
    from itertools import product

    from llrag_cli.formatting import counted
    from llrag_cli.models.embedded.model import load_embedded
    from llrag_cli.world.panorama import WORLDS, make_panorama

    vae = load_embedded()[2]
    sets = {}
    for world, changing in product(WORLDS, (False, True)):
        panoramas = [
            make_panorama(vae.encode, world, seconds=seconds, seed=number, changing_light=changing)
            for number in range(count * seed, count * (seed + 1))
        ]
        light = "changing light" if changing else "steady light"
        title = f"objects differ in {world}, {light}: {counted(count, 'video')} of {seconds:g} s"
        sets[title] = _Videos([each.latents for each in panoramas], [each.labels for each in panoramas])
    return sets


def quality_table(title: str, rows: Mapping[str, Quality], count: int) -> Any:
    """The results of one set of videos as a table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    table.add_column("keys")
    for heading in (f"recall@{count}", "unguarded", "MRR", "cos 1 apart", "cos 8 apart", "near guard", "rank"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        recall = "-"
        if row.recall is not None and row.recall_interval is not None:
            recall = "{:.3f} [{:.2f}, {:.2f}]".format(row.recall, *row.recall_interval)
        accuracy = [row.unguarded_recall, row.reciprocal_rank]
        cells = [recall, *("-" if value is None else f"{value:.3f}" for value in accuracy)]
        cells += [f"{row.similarity[lag]:.3f}" if lag in row.similarity else "-" for lag in (1, 8)]
        table.add_row(name, *cells, f"{100 * row.near_guard:.0f} %", f"{row.effective_rank:.1f}")
    return table
