"""Memory rules from outside the package: a function that a user names as ``package.module:function``.

Such a rule is code. It is imported only when its name is an argument (``load_config(memory=...)``, a setting), never
because a file or a client of a server asks for it: neither a preset, a scene nor the record of a run can make llrag
import something. Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llrag_cli.errors import LlragError, OwnRuleError, UsageError, closest
from llrag_cli.files.guarded import shortened
from llrag_cli.files.resources import out_of_memory
from llrag_cli.memory.strategies import STRATEGIES, RetrievalMemory, register

if TYPE_CHECKING:
    from torch import Tensor

    from llrag_cli.memory.candidates import Candidates

Rule = Callable[["Candidates", int], "Tensor"]
GROUP = "llrag.memory"  # of entry points, by which an installed package gives its rules short names
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

_loaded: dict[str, Rule] = {}  # by `package.module:function`


@register
class OwnRule(RetrievalMemory):
    """A function of your own, `memory.rule`; `--memory package.module:function` is short for it."""

    strategy: Literal["own"] = "own"
    rule: str = Field(pattern=f"^{NAME.pattern}$", max_length=200, description="`package.module:function`")

    @property
    def title(self) -> str:
        """As ``MemoryConfig.title``: the rule's name."""
        return self.rule

    def require_ready(self) -> None:
        """As ``MemoryConfig.require_ready``: the rule must have been loaded."""
        if self.rule not in _loaded:
            raise OwnRuleError(self.rule)

    def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """As ``RetrievalMemory.choose``; raises ``LlragError`` if the rule's result is no choice of frames."""
        self.require_ready()
        with _CodeOfUser(f"the rule `{self.rule}`"):
            positions = _loaded[self.rule](candidates, self.retrieved)
        return candidates.with_similarities(_checked(self.rule, positions, candidates, self.retrieved))


def strategies_without_code() -> tuple[str, ...]:
    """Names of the strategies that files and clients may ask for: all that belong to the package."""
    return tuple(name for name, strategy in STRATEGIES.items() if strategy is not OwnRule)


def named_rule(memory: str) -> str | None:
    """The ``package.module:function`` that a strategy's name stands for, or None if it is not a rule from outside.

    It is one itself, or the name of an entry point of the group ``llrag.memory``.
    """
    if ":" in memory:
        if not NAME.fullmatch(memory):
            raise UsageError(f"`{memory}` names no rule", hint="write `package.module:function`")
        return memory
    if memory in STRATEGIES:
        return None
    from importlib.metadata import entry_points  # takes a while, and is needed for unknown names alone

    found = entry_points(group=GROUP, name=memory)
    return next((entry.value for entry in found if NAME.fullmatch(entry.value)), None)


def load_rule(name: str) -> None:
    """Import the function of a name, also from the current folder; ``OwnRule`` may use it from now on.

    Raises ``UsageError`` if there is no such function.
    """
    if name in _loaded:
        return
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing that is installed
    try:
        with _CodeOfUser(f"the rule `{name}` cannot be imported: its module"):
            module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UsageError(
            f"the rule `{name}` cannot be imported: {error}",
            hint="install its package, or run in the folder that holds the module",
        ) from error
    rule: Any = getattr(module, function_name, None)
    if not callable(rule):
        functions: Iterable[str] = [key for key, value in vars(module).items() if callable(value)]
        raise UsageError(
            f"the module `{module_name}` has no function `{function_name}`", hint=closest(function_name, functions)
        )
    _loaded[name] = rule


class _CodeOfUser:
    """What the code of a user raises in this context becomes an ``LlragError`` with the line that raised it."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        passed = (KeyboardInterrupt, GeneratorExit, ImportError, SyntaxError, LlragError)
        if error is None or isinstance(error, passed) or out_of_memory(error):
            return
        frame = traceback.extract_tb(trace)[-1]
        where = "" if frame.filename == __file__ else f" (`{Path(frame.filename).name}`, line {frame.lineno})"
        about = shortened(" ".join(f"{type(error).__name__}: {error}".split()), 200).rstrip(": ")
        problem = f"{self._what} raised {about}{where}"
        raise LlragError(problem, hint="correct the rule, or choose another memory strategy") from error


def _checked(name: str, positions: Any, candidates: Candidates, count: int) -> Tensor:
    """The positions [B, K] that a rule returned, as [K] or [B, K]; raises ``LlragError`` unless it is a choice."""
    from torch import bool as boolean

    batch, total = len(candidates.keys), len(candidates.frames)
    try:
        chosen: Tensor = positions.to(candidates.frames.device)
        whole = not chosen.is_floating_point() and not chosen.is_complex() and chosen.dtype != boolean
        chosen = chosen.long().expand(batch, -1) if chosen.ndim == 1 else chosen.long()
    except (AttributeError, TypeError) as error:
        raise LlragError(
            f"the rule `{name}` returned a `{type(positions).__name__}`, not a tensor of positions", hint=_EXPECTED
        ) from error
    problem = None
    if not whole:
        problem = "values that are not integers"
    elif chosen.ndim != 2 or len(chosen) != batch:
        problem = f"the shape {[*positions.shape]} for a batch of {batch}"
    elif chosen.shape[1] > count:
        problem = f"{chosen.shape[1]} frames instead of at most {count}"
    elif chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= total):
        problem = f"a position outside 0..{total - 1}"
    elif any(len(set(row)) < len(row) for row in chosen.tolist()):
        problem = "a frame twice"
    if problem is not None:
        raise LlragError(f"the rule `{name}` returned {problem}", hint=_EXPECTED)
    return chosen


_EXPECTED = "a rule returns positions among the candidates, [K] or [B, K], each at most once and K at most `count`"
