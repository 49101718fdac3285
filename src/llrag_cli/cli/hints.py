"""What the command line advises about an error of the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from llrag_cli.errors import (
    ArchiveError,
    AttentionError,
    CollectionDiffersError,
    DamagedFileError,
    DoesNotFitError,
    DownloadFolderError,
    DownloadSourceError,
    ExportFolderError,
    FolderNotEmptyError,
    InvalidMetricModelError,
    LlragError,
    LoadingMemoryError,
    MissingMetricModelError,
    MissingOpenTimelineIOError,
    MissingWeightsError,
    NoLatentsError,
    NotARunError,
    OutOfMemoryError,
    OwnRuleError,
    RecordedAttentionError,
    RunDiffersError,
    RunExistsError,
    RunLengthError,
    RunLockedError,
    TrainingDiffersError,
    TrainingExistsError,
    UnwritableError,
)

if TYPE_CHECKING:
    from llrag_cli.runs.folder import RunFolder


def _another_source(error: DownloadSourceError) -> str:
    if not error.alternatives:
        return error.hint
    return f"{error.hint}; or try {' or '.join(f'`--source {name}`' for name in error.alternatives)}"


def _missing_weights(error: MissingWeightsError) -> str:
    item = _catalogue_item(error.path if error.checkpoint is None else Path(error.checkpoint)) or "NAME"
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
        "shorter": "make a shorter video",
        "plain": "use `--no-rag`, which keeps no archive",
        "archive": f"keep the archive elsewhere with {' or '.join(f'`--archive {tier}`' for tier in error.tiers)}",
        "offload": "add `--offload`",
        "window": "shorten the window, for example `--set memory.window=9 --set memory.retrieved=3`",
        "smaller": "make the picture smaller with `--set backbone.height=` and `--set backbone.width=`",
        "model": "use a smaller `--backbone`, or `--dtype bfloat16`",
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
    ArchiveError: lambda error: f"{error.remedy}use `--archive {error.tier}`",
    RecordedAttentionError: lambda _: (
        "resume it where it was begun, or with `--attention native`: the rest may then differ from an uninterrupted run"
    ),
    AttentionError: lambda _: "install what it needs, or use `--attention native`",
    DamagedFileError: _damaged_file,
    DoesNotFitError: _does_not_fit,
    DownloadFolderError: lambda error: f"{error.hint} with `--to`",
    DownloadSourceError: _another_source,
    MissingWeightsError: _missing_weights,
    InvalidMetricModelError: lambda _: "`llrag download metrics --force` fetches the released files again",
    MissingMetricModelError: lambda _: (
        "`llrag download metrics` fetches them; LLRAG_WEIGHTS names the weights folder; "
        "`--backend offline` needs no download"
    ),
    MissingOpenTimelineIOError: lambda error: f"{error.hint} installs it; `--no-timeline` exports without it",
    UnwritableError: lambda error: "choose another folder with `--out`",
    RunExistsError: lambda error: (
        f"`llrag generate --resume {quote(str(error.path))}` continues it; "
        "or choose another `--out`, or replace it with `--force`"
    ),
    ExportFolderError: lambda error: (
        "choose another `--out`, or add `--force`: files with other names than those of the export are left alone"
    ),
    FolderNotEmptyError: lambda error: (
        "choose another `--out`, or add `--force`: files that do not belong to a run are left alone"
    ),
    RunLockedError: lambda error: "wait until it has finished, or choose another `--out`",
    NotARunError: lambda error: "give a folder that `llrag generate` created",
    RunDiffersError: lambda error: (
        "leave them out to resume the run with its own settings, choose another `--out`, or replace it with `--force`"
    ),
    RunLengthError: lambda error: "`--seconds` can only be longer",
    OutOfMemoryError: lambda error: (
        "a cheaper `--archive`, `--offload` or a smaller `--memory-budget` needs less memory; finished blocks are "
        f"kept, `llrag generate --resume {quote(str(error.path))}` continues the run"
    ),
    OwnRuleError: lambda error: f"if you trust it, name it: `--memory {error.rule}`",
    LoadingMemoryError: lambda _: "free some memory; `llrag doctor` shows what each backbone needs",
    NoLatentsError: lambda _: "`llrag collect PROMPTS --out FOLDER` generates some: latent_*.safetensors",
    TrainingExistsError: lambda _: "`--resume` continues it, `--force` starts over; or choose another `--out`",
    TrainingDiffersError: lambda _: "repeat the command that started it, or start over with `--force`",
    CollectionDiffersError: lambda error: "choose another `--out`, or repeat the command that started it",
}


def video_again(folder: RunFolder) -> str:
    """What writes a damaged video again."""
    return f"`llrag generate --resume {quote(str(folder.path))}` writes it again from the latents"


def hint_for(error: LlragError) -> str:
    """The command line's own hint for an error, by its type; otherwise the error's."""
    for kind in type(error).__mro__:
        if kind in HINTS:
            return HINTS[kind](error)
    return error.hint
