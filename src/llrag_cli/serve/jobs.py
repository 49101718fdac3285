"""A job of the server: what a client asked for, kept as ``job.json`` in the run folder that it becomes."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from llrag_cli.cache.tiers import EXACT
from llrag_cli.config import RunConfig
from llrag_cli.errors import DamagedRunError
from llrag_cli.files.durable import replace_text, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, read_bytes, reason_of
from llrag_cli.files.records import Record, parse_as
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import Timeline, one_shot, plan_timeline

FILE = "job.json"
LARGEST = 16 * MEGABYTE
LIVE = re.compile(r"now-(\d+)")  # names of shots that were begun while the video was generated

Wanted = Literal["run", "pause", "cancel"]


class JobError(Record):
    """Why a job failed."""

    code: str
    message: str
    hint: str = ""


class Switch(Record):
    """A new prompt for a video that is being generated. Its shot is called ``now-`` and the number."""

    number: int = Field(ge=1, le=2**40)
    prompt: str
    cut: bool = False

    @property
    def name(self) -> str:
        """The name of its shot."""
        return f"now-{self.number}"


class Job(Record):
    """The content of ``job.json``. What is there of the video is in the files of the run itself."""

    schema_version: Literal[1] = 1
    id: str
    number: int = Field(ge=0, le=2**53, description="place in the queue: the lowest is next")
    created_at: float = Field(ge=0)
    completed_at: float | None = None
    wanted: Wanted = "run"
    outcome: Literal["completed", "failed"] | None = None
    error: JobError | None = None
    config: RunConfig
    prompt: str | None = Field(default=None, description="of a video of one shot; otherwise there is a scene")
    seconds: float | None = Field(default=None, gt=0)
    image: Path | None = None
    scene: Scene | None = None
    seed: int = Field(ge=-(2**63), lt=2**64)
    switches: tuple[Switch, ...] = ()
    group: str | None = None
    kind: Literal["takes", "comparison"] | None = Field(default=None, description="what the group is")
    take: int = 1
    picked: bool = False
    remixed_from: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether there is work to do on it, now or later."""
        return self.outcome is None and self.wanted == "run"

    def planned(self) -> Timeline:
        """The shots as they were asked for, before any was added."""
        if self.scene is not None:
            return plan_timeline(self.scene, self.config)
        frames = self.config.latent_frames(self.seconds or 0.0)
        return one_shot(self.prompt or "", self.config, latent_frames=frames, image=self.image)


@dataclass(frozen=True)
class Finished:
    """How a job ended in a worker: ``problem`` is set if it failed, ``stopped`` if it was paused or cancelled."""

    stopped: bool = False
    problem: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class Ended:
    """A message of a worker: the run of a folder ended."""

    folder: str
    finished: Finished


def new_id(kind: str = "video") -> str:
    """An identifier that cannot be guessed, and is a file name."""
    return f"{kind}_{secrets.token_hex(12)}"


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json``; it is on disk when this returns."""
    replace_text(folder / FILE, job.model_dump_json(indent=1, exclude_none=True) + "\n")


def read_job(folder: Path) -> Job | None:
    """The job of a run folder; None if it has none. Raises ``LlragError`` for a file that cannot be read."""
    file = folder / FILE
    require_own(file)
    try:
        return parse_as(Job, read_bytes(file, limit=LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, UnreadableError) as error:
        raise DamagedRunError(file, reason_of(error)) from error


def live_number(timeline: Timeline) -> int:
    """The number of the latest switch that is in a timeline; 0: none is."""
    found = (LIVE.fullmatch(shot.name) for shot in timeline.shots)
    return max((int(match[1]) for match in found if match), default=0)


def renewed(config: RunConfig) -> RunConfig:
    """The exact archives give the same video, so one that fits now is chosen again."""
    memory = config.memory
    if isinstance(memory, RetrievalMemory) and memory.archive in EXACT:
        return config.model_copy(update={"memory": memory.model_copy(update={"archive": "auto"})})
    return config
