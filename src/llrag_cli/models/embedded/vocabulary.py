"""The embedded model's words: what they mean, and what it makes of a prompt. Nothing here needs torch.

Synonyms share an id, so ``crimson disc`` is ``red circle``. Words that mean nothing here are left out.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from llrag_cli.models.reading import PromptReading

Kind = Literal["", "number", "color", "shape", "size", "pattern", "wall", "motion", "pace"]

CONCEPTS: tuple[tuple[Kind, str], ...] = (  # one id each, synonyms in one line; new ones go to the end
    ("", "a an the one some its it this that"),
    ("", "and with while also then"),
    ("number", "two both pair couple"),
    ("number", "three several many few"),
    ("color", "red crimson scarlet ruby vermilion cherry"),
    ("color", "green emerald lime jade olive"),
    ("color", "blue navy azure cobalt sapphire"),
    ("color", "yellow golden gold lemon"),
    ("color", "orange amber tangerine"),
    ("color", "purple violet lilac indigo"),
    ("color", "white snowy ivory"),
    ("color", "black ebony jet"),
    ("color", "gray grey silver ash"),
    ("color", "brown tan chocolate wooden earthy"),
    ("color", "pink rose salmon rosy"),
    ("shape", "circle circles ball balls disc discs disk disks orb sphere"),
    ("shape", "square squares box boxes block blocks cube cubes"),
    ("shape", "triangle triangles wedge wedges pyramid pyramids"),
    ("shape", "cross crosses plus"),
    ("shape", "shape shapes object objects thing things figure figures"),
    ("size", "small little tiny mini smaller"),
    ("size", "large big huge giant larger great"),
    ("pattern", "plain flat smooth empty simple solid"),
    ("pattern", "striped stripes stripy lined banded"),
    ("pattern", "dotted spotted dots polka spots speckled"),
    ("wall", "wall walls background backdrop field ground surface room scene"),
    ("motion", "bounce bounces bouncing bounced around hop hops hopping moves move moving fly flies flying"),
    ("motion", "orbit orbits orbiting go goes going circling round revolve revolves spin spins turning"),
    ("motion", "pass passes passing by slide slides sliding past drift drifts scroll scrolls pan pans panning"),
    ("", "on in over front of against before at across"),
    ("pace", "slowly slow gently gentle"),
)
PAD, UNKNOWN = 0, 1  # ids; concepts follow

# left out without a word
SILENT = frozenset(
    ("is", "are", "was", "were", "be", "being", "there", "to", "as", "into", "onto", "back", "again", "now", "still")
)
OBJECT_COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
WALL_COLORS = ("blue", "green", "gray", "brown", "pink")
MOST_OBJECTS = 4
LENGTH = 24  # words that the text encoder takes


class Word(NamedTuple):
    """A word as it is written, and its id."""

    text: str
    id: int

    @property
    def kind(self) -> Kind:
        """What it is about; empty for an unknown word and for one that only joins others."""
        return CONCEPTS[self.id - 2][0] if self.id > UNKNOWN else ""

    @property
    def name(self) -> str:
        """The first of its synonyms."""
        return CONCEPTS[self.id - 2][1].split()[0] if self.id > UNKNOWN else self.text


@cache
def ids() -> dict[str, int]:
    """The id of every known word."""
    return {word: number for number, (_, line) in enumerate(CONCEPTS, start=2) for word in line.split()}


def words_of(text: str) -> list[Word]:
    """The words and marks of a text, without accents and in lower case for the look-up."""
    found = []
    for part in re.findall(r"[^\W_]+|[^\w\s]|_", unicodedata.normalize("NFKC", text)):
        bare = "".join(each for each in unicodedata.normalize("NFKD", part) if not unicodedata.combining(each))
        found.append(Word(part, ids().get(bare.lower(), UNKNOWN)))
    return found


def tokenize(text: str, *, limit: int = LENGTH) -> tuple[list[int], list[str]]:
    """Ids of the known words, at most ``limit``, and the unknown words in order (marks are passed over)."""
    words = words_of(text)
    unknown = [word.text for word in words if word.id == UNKNOWN and _matters(word.text)]
    return [word.id for word in words if word.id != UNKNOWN][:limit], list(dict.fromkeys(unknown))


def _matters(text: str) -> bool:
    return text.isalnum() and text.lower() not in SILENT


# --- what it makes of a prompt -------------------------------------------------------------------------


@dataclass
class Phrase:
    """Neighbouring words about one thing: an object, the wall, or a motion."""

    words: list[Word]

    def of(self, kind: Kind) -> list[Word]:
        """Its words of a kind."""
        return [word for word in self.words if word.kind == kind]

    def __str__(self) -> str:
        return " ".join(word.text for word in self.words)


def phrases_of(words: list[Word]) -> list[Phrase]:
    """Words that are next to each other, up to a noun or a joining word; motions are phrases of their own."""
    phrases: list[Phrase] = []
    open_phrase = False
    for word in words:
        if not word.kind:
            open_phrase = open_phrase and word.text.lower() in SILENT
            continue
        moves = word.kind in ("motion", "pace")
        before = phrases[-1] if phrases else None
        if not open_phrase or before is None or moves != bool(before.of("motion") or before.of("pace")):
            phrases.append(Phrase([]))
        phrases[-1].words.append(word)
        open_phrase = word.kind not in ("shape", "wall")
    return phrases


def read_prompt(text: str) -> PromptReading:
    """What the embedded model understands of a prompt, ignores, and cannot draw."""
    every = words_of(text)
    known = [word for word in every if word.id != UNKNOWN]
    beyond = [word.text for word in known[LENGTH:] if word.kind]
    phrases = phrases_of([word for word in every if word.id == UNKNOWN or word in known[:LENGTH]])
    ignored = [*tokenize(text)[1], *beyond]
    return PromptReading(
        understood=tuple(str(phrase) for phrase in phrases),
        ignored=tuple(dict.fromkeys(ignored)),
        impossible=tuple(_impossible(phrases)),
    )


def _impossible(phrases: list[Phrase]) -> list[str]:
    """What phrases ask for that is not in this world, each with what there is instead."""
    found = []
    objects = [phrase for phrase in phrases if phrase.of("shape")]
    walls = [phrase for phrase in phrases if phrase.of("wall") and not phrase.of("shape")]
    wall_colors = {word.name for phrase in walls for word in phrase.of("color")}
    used: set[str] = set()
    for phrase in objects:
        for color in phrase.of("color"):
            if color.name not in OBJECT_COLORS:
                found.append(f"{phrase} (objects are {_listed(OBJECT_COLORS)})")
            elif color.name in wall_colors:
                found.append(f"{phrase} (an object has another colour than the wall)")
            elif color.name in used or phrase.of("number"):
                found.append(f"{phrase} (objects of one video differ in colour)")
            used.add(color.name)
        if phrase.of("pattern"):
            found.append(f"{phrase} (only walls have patterns)")
    for phrase in walls:
        if any(color.name not in WALL_COLORS for color in phrase.of("color")):
            found.append(f"{phrase} (walls are {_listed(WALL_COLORS)})")
    if len(objects) > MOST_OBJECTS:
        found.append(f"{len(objects)} objects (there are at most {MOST_OBJECTS})")
    motions = list(dict.fromkeys(word.name for phrase in phrases for word in phrase.of("motion")))
    if len(motions) > 1:
        found.append(f"{' and '.join(motions)} (all objects of a video move alike)")
    return found


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def described() -> list[str]:
    """The vocabulary in a few lines, for people."""
    names: dict[Kind, list[str]] = {}
    for kind, line in CONCEPTS:
        names.setdefault(kind, []).append(line.split()[0])
    motions = [line.split()[1] for kind, line in CONCEPTS if kind == "motion"]
    return [
        f"objects: up to {MOST_OBJECTS}, {'small or large'}, each of another colour: {_listed(OBJECT_COLORS)}",
        f"shapes: {_listed(tuple(names['shape'][:-1]))}",
        f"walls: {_listed(tuple(names['pattern']))}; {_listed(WALL_COLORS)}",
        f"motion: {_listed(tuple(motions))}; slowly",
        f"words: at most {LENGTH} with a meaning; synonyms such as `crimson disc` for `red circle` are known",
    ]
