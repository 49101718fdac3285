"""What can be downloaded, as data: ``catalogue.yaml`` in this folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from llrag_cli.files.settings import Config
from llrag_cli.errors import UsageError, closest

Kind = Literal["weights", "prompts", "metrics"]


class CatalogueFile(Config):
    """Files of a repository that match a pattern, and where they go."""

    path: str = Field(description="path or pattern (`vae/*`) in the repository")
    to: str = Field(description="place in the weights folder; a folder where it ends in `/`")
    convert: Literal["generator", "lora", "encoder"] | None = Field(default=None, description="rewrite as safetensors")
    ema: bool = Field(default=False, description="keep the EMA weights of a generator")
    bytes: int = Field(gt=0, description="size, estimated from parameter counts")
    sha256: str | None = Field(default=None, description="of the file itself, or how it begins, where that is known")


class Source(Config):
    """A repository that has an item."""

    repo: str
    url: str | None = Field(default=None, description="where a web server has its files; without it, the hub has them")
    revision: str = "main"
    licence: str
    files: tuple[CatalogueFile, ...] = Field(min_length=1)


class Item(Config):
    """Something to ask for by name."""

    about: str
    needs: tuple[str, ...] = Field(default=(), description="items that it cannot run without")
    sources: dict[str, Source] = Field(min_length=1, description="the first is the default")

    @property
    def bytes(self) -> int:
        """Estimated size of the default source."""
        return sum(file.bytes for file in next(iter(self.sources.values())).files)


class Catalogue(Config):
    """Items by kind and name."""

    weights: dict[str, Item]
    prompts: dict[str, Item]
    metrics: dict[str, Item]

    def items(self, kind: Kind) -> dict[str, Item]:
        """The items of a kind."""
        return {"weights": self.weights, "prompts": self.prompts, "metrics": self.metrics}[kind]


@cache
def catalogue() -> Catalogue:
    """The catalogue in the package."""
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.model_validate(yaml.safe_load(text))


def choose(
    kind: Kind, names: Iterable[str], *, source: str | None = None, only: bool = False
) -> list[tuple[str, Source]]:
    """The named items (``all`` are all) and what they need, each once, with the source to take it from.

    Raises ``UsageError`` for an unknown item, or a source that a named item does not have.
    """
    items = catalogue().items(kind)
    asked = list(dict.fromkeys(names))
    for name in asked:
        if name != "all" and name not in items:
            raise UsageError(f"there is nothing to download called `{name}`", hint=closest(name, [*items, "all"]))
    everything = "all" in asked or not asked
    wanted = list(items) if everything else asked
    if source is not None and not everything:
        for name in wanted:
            if source not in items[name].sources:
                raise UsageError(f"`{name}` has no source `{source}`", hint=closest(source, items[name].sources))
    if not only:
        wanted += [need for name in wanted for need in items[name].needs]
    chosen = []
    for name in dict.fromkeys(wanted):
        sources = items[name].sources
        chosen.append((name, sources[source] if source in sources else next(iter(sources.values()))))
    return chosen
