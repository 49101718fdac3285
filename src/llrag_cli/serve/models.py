"""Models that a server offers."""

from __future__ import annotations

from collections.abc import Sequence

from llrag_cli.files.paths import weights_folder
from llrag_cli.models.family import family_of, require_files
from llrag_cli.presets import load_config, preset_names


def offered(names: Sequence[str]) -> tuple[str, ...]:
    """The named presets, whose weights must be there, or all whose weights are; the first is the default."""
    for name in names:
        require_files(load_config(name), weights_folder())
    if names:
        return tuple(dict.fromkeys(names))
    found = []
    for name in preset_names():
        config = load_config(name)
        if not family_of(config).missing(config, weights_folder()):
            found.append(name)
    return tuple(found)
