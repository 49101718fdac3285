"""Change the code in one place at a time and see whether a test notices: ``python benchmarks/mutations.py``.

A mutation swaps a comparison or an operator, negates a condition, changes a number or a boolean, or returns None. The
tests of its room must fail then; a mutation that survives is code that no test looks at, or one that changes nothing
that can be seen. Works on a copy of the checkout; each run of the tests is a fork of a process that has loaded torch,
so this needs Linux or macOS. Prints the mutations that survive, and for each room how many were killed.
"""

from __future__ import annotations

import ast
import collections
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/llrag_cli")
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {  # files of a room, and the tests that are run for it
    "sampling": ("sampling/*.py", ("tests/sampling", "tests/engine/test_rollout.py", "tests/parity")),
    "statistics": ("evaluation/statistics.py", ("tests/evaluation/test_statistics.py",)),
    "memory": (
        "memory/*.py",
        (
            "tests/memory",
            "tests/engine/test_rollout.py",
            "tests/engine/test_commit.py",
            "tests/engine/test_shots.py",
            "tests/parity",
        ),
    ),
    "cache": (
        "cache/*.py",
        (
            "tests/cache",
            "tests/engine/test_rollout.py",
            "tests/engine/test_read.py",
            "tests/engine/test_commit.py",
            "tests/engine/test_shots.py",
            "tests/engine/test_gpu.py",
            "tests/parity",
        ),
    ),
    "scenes": ("scenes/*.py", ("tests/scenes", "tests/cli/test_scene.py", "tests/engine/test_shots.py")),
    "engine": (
        "engine/*.py",
        (
            "tests/engine/test_pipeline.py",
            "tests/engine/test_rollout.py",
            "tests/engine/test_read.py",
            "tests/engine/test_shots.py",
            "tests/engine/test_commit.py",
            "tests/engine/test_session.py",
            "tests/engine/test_scenes.py",
            "tests/engine/test_determinism.py",
            "tests/engine/test_execution.py",
            "tests/engine/test_attention.py",
            "tests/engine/test_real_weights.py",
            "tests/engine/test_gpu.py",
            "tests/cli/test_cli.py",
        ),
    ),
    "runs": (
        "runs/*.py",
        (
            "tests/runs/test_record.py",
            "tests/runs/test_journal.py",
            "tests/runs/test_segments.py",
            "tests/runs/test_video.py",
            "tests/cli/test_decode.py",
            "tests/runs/test_export.py",
            "tests/runs/test_links.py",
            "tests/batch/test_collect.py",
            "tests/runs/test_power_cut.py",
            "tests/runs/test_resume.py",
        ),
    ),
}
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
UPPER = ("le", "lt", "max_length")  # limits of fields against files that are out of all proportion: left out
MARGIN = 60.0  # seconds that tests may take longer than twice their usual time


@dataclass(frozen=True)
class Mutation:
    """A change of one file: which of its places, the line, and the code before and after."""

    file: str  # below the package
    number: int
    line: int
    before: str
    after: str


def mutations(source: str, file: str = "") -> Iterator[tuple[Mutation, str]]:
    """Every mutation of a module, and the module's source with it."""
    tree = ast.parse(source)
    for number, (node, change) in enumerate(_places(tree)):
        with _changed(node, change):
            after, whole = _first_line(node), ast.unparse(tree)
        yield Mutation(file, number, getattr(node, "lineno", 0), _first_line(node), after), whole


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


class _changed:  # noqa: N801 - used as a function
    """A node of a tree with a change, which is undone in the end."""

    def __init__(self, node: ast.AST, change: Callable[[ast.AST], None]) -> None:
        self._node, self._before, self._change = node, dict(vars(node)), change

    def __enter__(self) -> None:
        for name, value in self._before.items():
            setattr(self._node, name, copy.copy(value))  # lists of operators are changed in place
        self._change(self._node)

    def __exit__(self, *_: object) -> None:
        vars(self._node).clear()
        vars(self._node).update(self._before)


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, Callable[[ast.AST], None]]]:
    """Nodes that can be changed, and how; left out are annotations, decorators, and messages of errors."""
    for node in _walk(tree):
        if isinstance(node, ast.Compare):
            for index in range(len(node.ops)):
                yield node, _swapping(index)
        elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPPED:
            if not (isinstance(node, ast.BinOp) and any(map(_is_text, (node.left, node.right)))):
                yield node, lambda each: setattr(each, "op", SWAPPED[type(each.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, lambda each: setattr(each, "operand", ast.UnaryOp(ast.Not(), each.operand))
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            yield node, lambda each: setattr(each, "value", _other(each.value))
        elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            yield node, lambda each: setattr(each, "value", ast.Constant(None))
        if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, ast.Compare):
            yield node, lambda each: setattr(each, "test", ast.UnaryOp(ast.Not(), each.test))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(
            node, (ast.Raise, ast.Import, ast.ImportFrom)
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and (child.arg in UPPER or (child.arg == "strict" and _is_zip(node))):
                continue
            if isinstance(child, ast.AST) and not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child)):
                yield child
                yield from _walk(child)


def _is_zip(node: ast.AST) -> bool:
    """Whether a call is of ``zip``, whose ``strict`` is an assertion."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "zip"


def _swapping(index: int) -> Callable[[ast.AST], None]:
    def swap(node: ast.AST) -> None:
        node.ops[index] = SWAPPED[type(node.ops[index])]()  # type: ignore[attr-defined]

    return swap


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else 2 * value + 1


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def sampled(room: str, *, sample: int, seed: int, root: Path = ROOT) -> list[Mutation]:
    """Some mutations of each file of a room of a checkout, at most ``sample`` of a file."""
    chosen = []
    for path in sorted((root / PACKAGE).glob(ROOMS[room][0])):
        file = path.relative_to(root / PACKAGE).as_posix()
        found = [mutation for mutation, _ in mutations(path.read_text(encoding="utf-8"), file)]
        chosen += random.Random(f"{seed}/{file}").sample(found, min(sample, len(found)))
    return chosen


def listed_tests(room: str, file: str, *, root: Path) -> list[str]:
    """The test files of a room of a checkout, and those that import a changed ``file``.

    Those that are named like it come first, then those that import it.
    """
    files = []
    for name in ROOMS[room][1]:
        found = [root / name] if name.endswith(".py") else sorted((root / name).rglob("test_*.py"))
        files += [path.relative_to(root).as_posix() for path in found]
    if not file:
        return files
    module = "llrag_cli." + file.removesuffix(".py").replace("/", ".")
    every = {path.relative_to(root).as_posix(): path for path in sorted((root / "tests").rglob("test_*.py"))}
    importing = [name for name, path in every.items() if f"from {module} import" in path.read_text(encoding="utf-8")]
    named = [name for name in files if Path(file).stem in Path(name).stem]
    return list(dict.fromkeys([*named, *importing, *files]))


def run_tests(folder: Path, tests: Sequence[str], *, limit: float) -> str:
    """Run tests in a copy of the checkout: ``passed``, ``failed``, or ``timed out`` after ``limit`` seconds."""
    process = os.fork()
    if not process:
        os.setsid()  # what the tests start is killed with them
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.path[:0] = [str(folder / "src")]
        import pytest

        loaded = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # plugins that are imported already
        code = pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *loaded, *tests])
        os._exit(int(code))
    started = time.monotonic()
    while time.monotonic() - started < limit:
        if (ended := os.waitpid(process, os.WNOHANG))[0]:
            return "passed" if os.waitstatus_to_exitcode(ended[1]) == 0 else "failed"
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timed out"


def main(
    rooms: Annotated[str, typer.Option(help="Rooms, with commas between them")] = ",".join(ROOMS),
    sample: Annotated[int, typer.Option(help="Mutations of each file")] = 4,
    seed: Annotated[int, typer.Option(help="Which of them")] = 0,
    out: Annotated[Path | None, typer.Option(help="File for the outcomes, as lines of JSON")] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="Seconds for the tests of a mutation; if not given, they are run without one, to know"),
    ] = None,
    again: Annotated[Path | None, typer.Option(help="Try those again that survived in an earlier --out")] = None,
) -> None:
    """Try a sample of mutations."""
    os.environ |= {"PYTEST_XDIST_WORKER": "gw0", "OMP_NUM_THREADS": "1"}  # as one worker of the tests
    survivors = None if again is None else {_key(each) for each in _read(again) if each["outcome"] == "passed"}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        for name in ("src", "tests", "presets", "docs", "benchmarks", ".ci"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        os.environ["PYTHONPATH"] = str(folder / "src")  # of commands that tests start
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutation may be written within one tick of the clock
        _preload()
        for room in rooms.split(","):
            allowed = limit
            if allowed is None:
                started = time.monotonic()
                if run_tests(folder, listed_tests(room, "", root=folder), limit=3600) != "passed":
                    raise SystemExit(f"the tests of {room} fail without a mutation")
                allowed = 2 * (time.monotonic() - started) + MARGIN
            for mutation in sampled(room, sample=sample, seed=seed, root=folder):
                if survivors is not None and _key(asdict(mutation)) not in survivors:
                    continue
                path = folder / PACKAGE / mutation.file
                source = path.read_text(encoding="utf-8")
                mutated = next(text for each, text in mutations(source, mutation.file) if each == mutation)
                path.write_text(mutated, encoding="utf-8")
                outcome = run_tests(folder, listed_tests(room, mutation.file, root=folder), limit=allowed)
                path.write_text(source, encoding="utf-8")
                counts[room, "passed" if outcome == "passed" else "killed"] += 1
                if outcome == "passed":
                    typer.echo(f"{mutation.file}:{mutation.line}: `{mutation.before}` -> `{mutation.after}`")
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({**asdict(mutation), "room": room, "outcome": outcome}) + "\n")
    for room in rooms.split(","):
        killed, survived = counts[room, "killed"], counts[room, "passed"]
        if killed + survived:
            typer.echo(f"{room}: {killed} of {killed + survived} killed")


def _preload() -> None:
    """Import what the tests import, except the package, so that each fork starts at once."""
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def _read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _key(mutation: dict[str, str]) -> tuple[str, str, str]:
    return mutation["file"], mutation["before"], mutation["after"]


if __name__ == "__main__":
    typer.run(main)
