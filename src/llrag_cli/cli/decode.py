"""``llrag decode``: the video of a run made again from its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import DecoderName, Device, Json


def decode(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a video")],
    decoder: DecoderName = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make the video of a run again from its latents: the final one of a preview, or one that was lost or damaged.

    A run that was generated with `--decoder tiny` gets the video that it
    would have with the full one. The backbone is not loaded, and latents
    and memory stay as they are; the old video is replaced at the end.
    """
    from llrag_cli.cli import console
    from llrag_cli.errors import MissingWeightsError, UsageError
    from llrag_cli.files.paths import weights_folder
    from llrag_cli.models.family import family_of
    from llrag_cli.presets import with_settings
    from llrag_cli.runs.folder import RunFolder

    folder, weights = RunFolder(run), weights_folder()
    record = folder.read_record()
    config = with_settings(record.config, [f"video.decoder={decoder or 'full'}"])
    family = family_of(config)
    family.require_settings(config)
    for setting, path in family.missing(config, weights, decoder_only=True).items():
        raise MissingWeightsError(config.name, path, setting=setting, checkpoint=None)
    if not folder.blocks_committed():
        raise UsageError(f"`{run}` has no latents yet", hint=f"`llrag generate --resume {run}` continues the run")
    folder.require_unlocked()
    folder.require_writable()
    with console.working("loading"):
        from llrag_cli.engine.decoding import prepare_decoder
        from llrag_cli.engine.determinism import set_deterministic
        from llrag_cli.engine.devices import find_device
        from llrag_cli.engine.execution import Execution
        from llrag_cli.files.tensors import DTYPES
        from llrag_cli.runs.decode import decode_run

        set_deterministic(device, fast=False)
        where = find_device(device)
        loaded = family.load_decoder(config, weights, device=where, dtype=DTYPES[record.dtype])
        same = config.video.decoder == record.config.video.decoder
        how = Execution(decoder_layout=record.decoder_layout) if same else Execution()
        prepare_decoder(loaded, where, how, config)
    if record.decoder_compiled:
        console.note("the decoder ran compiled before, and now does not: frames may differ by rounding")
    total = folder.blocks_committed()
    try:
        with console.counting("decoding", total=total) as advance:
            record = decode_run(folder, config, loaded, device=where, on_block=lambda _: advance(1))
    except KeyboardInterrupt:
        console.note("stopped; the run is as it was")
        raise
    if as_json:
        console.result_json({"folder": str(run), "video": str(folder.video), **record.model_dump(mode="json")})
    else:
        console.result(str(folder.video))
