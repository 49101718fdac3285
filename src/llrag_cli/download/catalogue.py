"""What can be downloaded, as data: ``catalogue.yaml`` in this folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from llrag_cli.errors import UsageError, closest
from llrag_cli.files.settings import Config
from llrag_cli.files.yaml_lines import parse_yaml

Kind = Literal["weights", "prompts", "metrics"]


class CatalogueFile(Config):
    """Files of a repository that match a pattern, and where they go."""

    path: str = Field(description="path or pattern (`vae/*`) in the repository")
    to: str = Field(description="path in the weights folder; a folder if it ends in `/`")
    convert: Literal["generator", "lora", "encoder"] | None = Field(default=None, description="rewrite as safetensors")
    ema: bool = Field(default=False, description="keep the EMA weights of a generator")
    bytes: int = Field(gt=0, description="size, estimated from parameter counts")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{8,64}$", description="of the file, or its first digits")
    blob: str | None = Field(default=None, pattern="^[0-9a-f]{40}$", description="git blob id of the file")


class Source(Config):
    """A repository that offers an item."""

    repo: str
    url: str | None = Field(default=None, description="of its files on a web server; without it, they are on the hub")
    revision: str = "main"
    licence: str
    files: tuple[CatalogueFile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_be_checked(self) -> Source:
        """The hub says what its files must be; of those of a web server the catalogue must."""
        if self.url is not None and any(file.sha256 is None and file.blob is None for file in self.files):
            raise ValueError(f"a file at {self.url} has neither `sha256` nor `blob`")
        return self


class Item(Config):
    """Something that can be downloaded by name."""

    about: str
    needs: tuple[str, ...] = Field(default=(), description="other items that it requires")
    optional: bool = Field(default=False, description="only downloaded by its name, not with `all`")
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
    return Catalogue.model_validate(parse_yaml(text, name="catalogue.yaml").content)


def alternatives(repo: str) -> tuple[str, ...]:
    """Names of other sources of the items that a repository offers."""
    content = catalogue()
    names = [
        name
        for items in (content.weights, content.prompts, content.metrics)
        for item in items.values()
        if any(source.repo == repo for source in item.sources.values())
        for name, source in item.sources.items()
        if source.repo != repo
    ]
    return tuple(dict.fromkeys(names))


def choose(
    kind: Kind, names: Iterable[str], *, source: str | None = None, only: bool = False
) -> list[tuple[str, Source]]:
    """The named items (``all``: all but optional ones) and, unless ``only``, those they require, with their sources.

    Raises ``UsageError`` for an unknown item, or a source that does not offer a named item (for ``all``: any item).
    """
    items = catalogue().items(kind)
    asked = list(dict.fromkeys(names))
    for name in asked:
        if name != "all" and name not in items:
            raise UsageError(f"unknown item `{name}`", hint=closest(name, [*items, "all"]))
    everything = "all" in asked or not asked
    optional = [name for name, item in items.items() if item.optional and name not in asked]
    wanted = [name for name in items if name not in optional] if everything else asked
    if source is not None:
        known = {name for item in wanted for name in items[item].sources}
        if source not in known:
            raise UsageError(f"unknown source `{source}`", hint=closest(source, known))
        for name in () if everything else wanted:
            if source not in items[name].sources:
                raise UsageError(f"unknown source `{source}` of `{name}`", hint=closest(source, items[name].sources))
    if not only:
        wanted += [need for name in wanted for need in items[name].needs]
    chosen = []
    for name in dict.fromkeys(wanted):
        sources = items[name].sources
        chosen.append((name, sources[source] if source in sources else next(iter(sources.values()))))
    return chosen
