"""Errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal


class LlragError(Exception):
    """A problem in one sentence, and a hint at how to solve it (empty where there is none).

    Hints of the library speak of files, packages and settings. A front end may word its own for a subclass.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes; constructors of subclasses differ."""
        return LlragError.__new__, (type(self), self.problem), self.__dict__


class UsageError(LlragError):
    """An invalid request: an unknown name, a value out of range, a file that is not what it should be."""


class ArchiveError(LlragError):
    """Memory or disk for the archive cannot be reserved; the archive ``tier`` needs less of it."""

    def __init__(self, problem: str, *, tier: str, remedy: str = "") -> None:
        super().__init__(problem, hint=f"{remedy}set `memory.archive` to `{tier}`")
        self.tier, self.remedy = tier, remedy


class NotFiniteError(LlragError):
    """A block of latents has NaN or infinite values."""


class WriteFailedError(LlragError):
    """A file that could not be written completely: the disk is full, or the write failed."""


class DownloadFolderError(LlragError):
    """The folder of a download is not writable, or (``full``) a disk may be too small."""

    def __init__(self, problem: str, *, full: bool) -> None:
        alternative = "free some space, move the hub's cache with HF_HOME, or " if full else ""
        super().__init__(problem, hint=f"{alternative}choose another folder")
        self.full = full


class DownloadSourceError(LlragError):
    """A repository that does not exist or lacks a file; ``alternatives`` names other sources of the same items."""

    def __init__(self, problem: str, *, alternatives: tuple[str, ...], hint: str = "") -> None:
        super().__init__(problem, hint=hint or "the repository has changed; update llrag")
        self.alternatives = alternatives


class MissingWeightsError(LlragError):
    """A file of a configuration's weights does not exist."""

    def __init__(self, config: str, path: Path, *, setting: str, checkpoint: str | None) -> None:
        super().__init__(
            f"the weights of `{config}` are incomplete: `{path}` does not exist (setting `{setting}`)",
            hint="download the weights; LLRAG_WEIGHTS names the folder they are in",
        )
        self.path = path
        self.setting = setting
        self.checkpoint = checkpoint  # the configuration's transformer, in the weights folder, if it needs the file


class DamagedFileError(LlragError):
    """A file of weights that cannot be read."""

    def __init__(self, path: Path, reason: str, *, kind: str = "a checkpoint") -> None:
        super().__init__(
            f"`{path}` cannot be read as {kind}: {reason}",
            hint="the file is damaged, incomplete or of another kind; download it again",
        )
        self.path = path


class UnsupportedModelError(LlragError):
    """A model of a shape that llrag cannot run."""

    def __init__(self, source: str, reason: str, *, hint: str) -> None:
        super().__init__(f"`{source}` is not supported: {reason}", hint=hint)


class AttentionError(LlragError):
    """An attention backend that does not work on this machine."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"the attention backend `{name}` does not work here: {reason}",
            hint="install what it needs, or use `native`",
        )
        self.name = name


class RecordedAttentionError(LlragError):
    """The attention backend that a run was begun with does not work on this machine."""

    def __init__(self, path: Path, error: AttentionError) -> None:
        super().__init__(
            f"`{path}` was begun with another attention backend than this machine has: {error.problem}",
            hint="resume it where it was begun, or name another backend: the rest may then differ from an "
            "uninterrupted run",
        )
        self.path = path


class OwnRuleError(UsageError):
    """A memory rule from outside the package that only a file asks for: it is code, and was not loaded."""

    def __init__(self, rule: str) -> None:
        super().__init__(
            f"the memory rule `{rule}` is code from outside llrag, which no file can make it run",
            hint=f"name it yourself if you trust it: `load_config(..., memory={rule!r})`",
        )
        self.rule = rule


Remedy = Literal["shorter", "plain", "archive", "offload", "window", "smaller", "model"]


class DoesNotFitError(LlragError):
    """A run needs more memory or disk space than there is.

    ``remedies`` would help, the most effective first; ``tiers`` are the archives that take less room.
    """

    def __init__(self, problem: str, *, remedies: Sequence[Remedy], tiers: Sequence[str] = ()) -> None:
        words: dict[Remedy, str] = {
            "shorter": "make a shorter video",
            "plain": "use a memory without retrieval, which keeps no archive",
            "archive": f"set `memory.archive` to {' or '.join(f'`{tier}`' for tier in tiers)}",
            "offload": "keep the weights on the host",
            "window": "shorten the window with `memory.window` and `memory.retrieved`",
            "smaller": "make the picture smaller with `backbone.height` and `backbone.width`",
            "model": "use a smaller backbone, or store its weights in fewer bits",
        }
        super().__init__(problem, hint="; ".join(words[remedy] for remedy in remedies))
        self.remedies = tuple(remedies)
        self.tiers = tuple(tiers)


class MissingMetricModelError(LlragError):
    """The official backend lacks a file of one of its models."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the official backend lacks a model: `{path}` does not exist",
            hint="fetch its models into the weights folder, or use the backend `offline`, which needs none",
        )
        self.path = path


class InvalidMetricModelError(LlragError):
    """A file of the official backend is damaged or holds another model."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, hint="replace it with the released file")


class LlragWarning(UserWarning):
    """A result may differ from what was meant."""


def closest(name: str, names: Iterable[str]) -> str:
    """A hint with the nearest valid name, or all of them."""
    known = sorted(names)
    if not known:
        return "there is none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(f'`{each}`' for each in known)}"


class UnwritableError(UsageError):
    """A file or folder that cannot be written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"`{path}` cannot be written: {reason}", hint="choose another folder")
        self.path = path


class LinkedFileError(UsageError):
    """A file of a run, or of other results, that is a symbolic link."""

    def __init__(self, path: Path, target: str) -> None:
        super().__init__(
            f"`{path}` is a symbolic link to `{target}`",
            hint="results are neither read nor written through links: remove the link, or replace it by the file",
        )
        self.path, self.target = path, target


class MissingOpenTimelineIOError(UsageError):
    """The package that writes timelines is not installed."""

    def __init__(self) -> None:
        super().__init__("OpenTimelineIO is not installed", hint="`pip install 'llrag[edit]'`")


class MissingTorchaoError(UsageError):
    """The package that rounds layers to eight bits is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "torchao, which computes in eight bits, is not installed", hint="`pip install 'llrag[quantize]'`"
        )


class RunExistsError(UsageError):
    """A folder that already contains a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"`{path}` already contains a run", hint="resume or replace it, or choose another folder")
        self.path = path


class FolderNotEmptyError(UsageError):
    """A folder with files that are not those of a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"`{path}` exists and is not empty", hint="choose another folder")
        self.path = path


class ExportFolderError(FolderNotEmptyError):
    """A folder for an export with files that are not those of an earlier one."""


class RunLockedError(UsageError):
    """A run folder that another process is writing."""

    def __init__(self, path: Path, owner: str) -> None:
        super().__init__(f"{owner} is writing `{path}`", hint="wait until it has finished, or choose another folder")
        self.path, self.owner = path, owner


class NotARunError(UsageError):
    """A path that is not a run folder: it does not exist, or lacks the file ``missing``."""

    def __init__(self, path: Path, *, missing: str = "") -> None:
        problem = f"`{path}` is not a run folder: it has no {missing}" if missing else f"no run folder `{path}`"
        super().__init__(problem, hint="a run folder contains `run.json`, `video.mp4` and `memory.jsonl`")
        self.path = path


class DamagedRunError(LlragError):
    """A file of a run that cannot be read."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"`{path}` is damaged: {problem}", hint="restore it from a copy, or remove the run and generate it again"
        )
        self.path = path


class RunSchemaError(LlragError):
    """A ``run.json`` of another version."""

    def __init__(self, path: Path, *, schema: int, supported: int) -> None:
        age = "an earlier" if schema < supported else "a later"
        super().__init__(
            f"`{path}` has schema {schema}, written by {age} version; this version reads schema {supported}",
            hint="use the version that wrote it, or remove the run and generate it again",
        )
        self.path, self.schema = path, schema


class RunDiffersError(UsageError):
    """A run that was started with settings other than those requested."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        settings = ", ".join(f"`{name}`" for name in names)
        super().__init__(
            f"`{path}` was started with other settings: {settings}",
            hint="resume it with its own settings, replace it, or choose another folder",
        )
        self.path, self.names = path, tuple(names)


class RunLengthError(UsageError):
    """A run that cannot become shorter."""

    def __init__(self, path: Path, *, recorded: float, requested: float) -> None:
        super().__init__(
            f"`{path}` is a run of {recorded:g} s and cannot be shortened to {requested:g} s",
            hint="a run can only be extended",
        )
        self.path, self.recorded, self.requested = path, recorded, requested


class RunDivergedError(LlragError):
    """A block that retrieves other frames than when it was generated, so that nothing after it would be the same."""

    def __init__(self, path: Path, block: int) -> None:
        super().__init__(
            f"`{path}` cannot be resumed here: block {block} retrieves other frames than before",
            hint="resume on the kind of machine, and with the versions, that are recorded in `run.json`",
        )
        self.path, self.block = path, block


class OutOfMemoryError(LlragError):
    """Memory that ran out in a block of a run."""

    def __init__(self, path: Path, block: int) -> None:
        super().__init__(
            f"out of memory in block {block}",
            hint="set `memory.archive` to a cheaper tier, or offload the weights; finished blocks are kept in "
            f"`{path}`, and the run can be resumed",
        )
        self.path, self.block = path, block


class LoadingMemoryError(LlragError):
    """Memory that ran out while weights were loaded."""

    def __init__(self) -> None:
        super().__init__(
            "memory ran out while the weights were loaded",
            hint="free some memory, keep the weights on the host, or use a smaller backbone",
        )


class CollectionDiffersError(UsageError):
    """A folder of latents that was started with settings other than those requested."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        settings = ", ".join(f"`{name}`" for name in names)
        super().__init__(f"`{path}` was started with other settings: {settings}", hint="choose another folder")
        self.path, self.names = path, tuple(names)


class NoLatentsError(UsageError):
    """A folder without latents to train on."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there are no latents in `{path}`", hint="collect some: files named latent_*.safetensors")
        self.path = path


class TrainingExistsError(UsageError):
    """An encoder whose training was started before."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"`{path}` has been trained before, at least in part",
            hint="resume or replace the training, or choose another file",
        )
        self.path = path


class TrainingDiffersError(UsageError):
    """A training that was started with another setting than requested."""

    def __init__(self, path: Path, name: str, recorded: object) -> None:
        super().__init__(
            f"`{path}` was started with another `{name}`: {recorded}",
            hint="resume the training with its own settings, or replace it",
        )
        self.path, self.name = path, name
