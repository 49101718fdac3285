"""What the command line advises about an error of the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llrag_cli.errors import AttentionError, DamagedFileError, DoesNotFitError, LlragError, MissingWeightsError


def _missing_weights(error: MissingWeightsError) -> str:
    item = _catalogue_item(Path(error.checkpoint or "")) or "NAME"
    return (
        f"`llrag download weights {item}` fetches them; LLRAG_WEIGHTS names the folder they are in; "
        "`--backbone tiny` needs none"
    )


def _damaged_file(error: DamagedFileError) -> str:
    item = _catalogue_item(error.path) or "NAME"
    return (
        "the file is damaged, incomplete or of another kind; "
        f"`llrag download weights {item} --force` fetches a released one again"
    )


def _does_not_fit(error: DoesNotFitError) -> str:
    words = {
        "shorter": "make a shorter video, or use `--no-rag`, which keeps no archive",
        "archive": f"keep the archive elsewhere with {' or '.join(f'`--archive {tier}`' for tier in error.tiers)}",
        "offload": "add `--offload`",
        "window": "shorten the window, for example `--set memory.window=9 --set memory.retrieved=3`",
        "smaller": "make the picture smaller with `--set backbone.height=` and `--set backbone.width=`",
    }
    return "; ".join(words[remedy] for remedy in error.remedies)


def _catalogue_item(path: Path) -> str | None:
    """The item of the download catalogue that a file of the weights folder belongs to."""
    from llrag_cli.download.catalogue import catalogue

    for name, item in catalogue().weights.items():
        for source in item.sources.values():
            for file in source.files:
                folder = file.to.endswith("/") and Path(file.to).name in (path.name, path.parent.name)
                if folder or path.stem == Path(file.to).stem:
                    return name
    return None


HINTS: dict[type[LlragError], Callable[[Any], str]] = {
    AttentionError: lambda _: "install what it needs, or use `--attention native`",
    DamagedFileError: _damaged_file,
    DoesNotFitError: _does_not_fit,
    MissingWeightsError: _missing_weights,
}


def hint_for(error: LlragError) -> str:
    """The command line's own hint for an error, by its type; otherwise the error's."""
    for kind in type(error).__mro__:
        if kind in HINTS:
            return HINTS[kind](error)
    return error.hint
