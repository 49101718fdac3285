"""Characters of the OpenAI API: clips or pictures that videos may retrieve from, each in a folder of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from llrag_cli.errors import UsageError
from llrag_cli.files.durable import create_folder, replace_text, replacing, require_own
from llrag_cli.files.guarded import UnreadableError, read_bytes
from llrag_cli.files.records import Record, parse_as
from llrag_cli.serve.folders import CHARACTER, OURS
from llrag_cli.serve.jobs import new_id
from llrag_cli.serve.plans import Upload
from llrag_cli.serve.problems import ApiError

LONGEST_NAME = 200


class Character(Record):
    """The content of ``character.json``."""

    schema_version: Literal[1] = 1
    id: str
    name: str
    created_at: float
    file: Literal["character.png", "character.mp4"]

    @property
    def content(self) -> dict[str, Any]:
        """As clients see it."""
        kind = "picture" if self.file == "character.png" else "clip"
        return {
            "id": self.id,
            "object": "character",
            "name": self.name,
            "created_at": int(self.created_at),
            "llrag": {"kind": kind},
        }


def add_character(runs: Path, name: str, upload: Upload) -> Character:
    """Keep a file that was uploaded as a character."""
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME:
        raise ApiError(400, "a character needs a name", code="invalid_value", param="name", hint="for example `Mara`")
    identifier = new_id("char")
    folder = runs / identifier
    file: Literal["character.png", "character.mp4"] = "character.png" if upload.kind == "picture" else "character.mp4"
    create_folder(folder)
    with replacing(folder / file) as partial:
        shutil.copyfile(upload.path, partial)
    character = Character(id=identifier, name=name, created_at=time.time(), file=file)
    replace_text(folder / CHARACTER, character.model_dump_json(indent=1) + "\n")
    return character


def find_character(runs: Path, identifier: str) -> tuple[Character, Path] | None:
    """A character and its file, by its identifier; None if there is none."""
    if not OURS.fullmatch(identifier):
        return None
    folder = runs / identifier
    try:
        require_own(folder, folder=True)
        require_own(folder / CHARACTER)
        character = parse_as(Character, read_bytes(folder / CHARACTER))
        require_own(folder / character.file)
    except (OSError, UnreadableError, UsageError):
        return None
    return (character, folder / character.file) if character.id == identifier else None


def all_characters(runs: Path) -> list[Character]:
    """All characters, the newest first."""
    found = [find_character(runs, path.name) for path in runs.glob("char_*") if path.is_dir()]
    return sorted((each[0] for each in found if each), key=lambda character: -character.created_at)
