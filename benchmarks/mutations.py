"""Change the code in one place at a time and see whether a test notices: ``python benchmarks/mutations.py``.

A mutation swaps a comparison or an operator, negates a condition, changes a number or a boolean, or returns None. One
of the tests that run the changed lines must fail then; ``--coverage`` is the file of ``benchmarks/coverage_by_test.py``
that says which these are. A mutation that survives is code whose result no test looks at, or changes nothing that can
be seen. Works on a copy of the checkout; each run of the tests is a fork of a process that has loaded torch, so this
needs Linux or macOS. Prints the mutations that survive, and for each room how many were killed.
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
ROOMS = ("evaluation/statistics.py", "sampling", "memory", "cache", "scenes", "engine", "runs")
TIMED_OUT, IMPORT = "timed out", "no test could be collected"
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
MARGIN = 60.0  # seconds that tests may take longer than three times their recorded time


@dataclass(frozen=True)
class Mutation:
    """A change of one file: which of its places, the lines of its statement, and the code before and after.

    ``first`` and ``last`` are 0 if only an import runs the statement.
    """

    file: str  # below the package
    number: int
    line: int
    first: int
    last: int
    before: str
    after: str


def mutations(source: str, file: str = "") -> Iterator[tuple[Mutation, str]]:
    """Every mutation of a module, and the module's source with it."""
    tree = ast.parse(source)
    lines = _lines_of_statements(tree)
    for number, (node, change) in enumerate(_places(tree)):
        with _changed(node, change):
            after, whole = _first_line(node), ast.unparse(tree)
        yield Mutation(file, number, getattr(node, "lineno", 0), *lines[node], _first_line(node), after), whole


def _lines_of_statements(tree: ast.AST) -> dict[ast.AST, tuple[int, int]]:
    """For each node the first and the last line of the statement that it is in, without the statement's body."""
    lines: dict[ast.AST, tuple[int, int]] = {}

    def visit(node: ast.AST, within: tuple[int, int], *, in_function: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body, in_function = (node.body[0].lineno, node.end_lineno or 0), True
        elif isinstance(node, ast.stmt) and in_function:
            blocks = [each for name in ("body", "cases") for each in getattr(node, name, ())[:1]]
            last = min([getattr(each, "lineno", node.lineno + 1) - 1 for each in blocks], default=node.end_lineno or 0)
            within = body = (node.lineno, max(node.lineno, last))
        else:
            body = within
        lines[node] = body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else within
        for child in ast.iter_child_nodes(node):
            visit(child, body, in_function=in_function)

    visit(tree, (0, 0), in_function=False)
    return lines


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
    package = root / PACKAGE
    for path in [package / room] if room.endswith(".py") else sorted((package / room).rglob("*.py")):
        file = path.relative_to(package).as_posix()
        found = [mutation for mutation, _ in mutations(path.read_text(encoding="utf-8"), file)]
        chosen += random.Random(f"{seed}/{file}").sample(found, min(sample, len(found)))
    return chosen


def tests_for(mutation: Mutation, recorded: Recorded, *, most: float, root: Path) -> list[str]:
    """The tests that run a mutation's lines, at most ``most`` seconds of them.

    Test files that are named like the mutation's come first, then those of its room, those that compare with recorded
    vectors, and those that take least. If only an import runs the lines, they are the tests that run any line of the
    file, or of one that imports it. Tests that were not recorded, as they are new, are added.
    """
    lines = recorded.lines.get(mutation.file, {})
    chosen = {name for line, names in lines.items() if mutation.first <= line <= mutation.last for name in names}
    if not mutation.first:
        used = [recorded.lines.get(file, {}) for file in _users(mutation.file, root)]
        chosen = {name for each in used for names in each.values() for name in names}
    files: dict[str, list[str]] = {}
    for name in sorted(chosen & {*recorded.present}):
        files.setdefault(name.partition("::")[0], []).append(name)
    seconds = {file: sum(recorded.seconds[name] for name in names) for file, names in files.items()}
    tests, total = [name for name in recorded.present if name not in recorded.seconds], 0.0
    room, stem = Path(mutation.file).parent.as_posix(), Path(mutation.file).stem

    def distance(file: str) -> tuple[bool, bool, bool, float]:
        return stem not in Path(file).stem, room not in file, "parity" not in file, seconds[file]

    for file in sorted(files, key=distance):
        for name in files[file]:
            if total + recorded.seconds[name] <= most or not total:
                tests.append(name)
                total += recorded.seconds[name]
    return tests


def _users(file: str, root: Path) -> Iterator[str]:
    """A file of the package, and those that import it."""
    module = ".".join(("llrag_cli", *Path(file).with_suffix("").parts))
    yield file
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if f"from {module} import" in path.read_text(encoding="utf-8"):
            yield path.relative_to(root / PACKAGE).as_posix()


@dataclass(frozen=True)
class Recorded:
    """What ``benchmarks/coverage_by_test.py`` wrote, and the tests of the checkout."""

    lines: dict[str, dict[int, list[str]]]  # by file below the package: tests by line
    seconds: dict[str, float]  # of each test
    present: list[str]

    @staticmethod
    def read(file: Path, *, root: Path = ROOT) -> Recorded:
        """What was recorded in a file."""
        found = json.loads(file.read_text(encoding="utf-8"))
        lines = {name: {int(line): tests for line, tests in each.items()} for name, each in found["lines"].items()}
        return Recorded(lines, found["seconds"], list(_test_functions(root)))


def _test_functions(root: Path) -> Iterator[str]:
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                yield f"{path.relative_to(root).as_posix()}::{node.name}"


def run_tests(folder: Path, tests: Sequence[str], *, limit: float) -> str:
    """Run tests in a copy of the checkout until one fails, and say which: ``""`` if none, ``TIMED_OUT`` if stopped."""
    failed = folder / "failed.txt"
    failed.unlink(missing_ok=True)
    process = os.fork()
    if not process:
        os.setsid()  # what the tests start is killed with them
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.path[:0] = [str(folder / "src")]
        import pytest

        class Noting:
            def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
                if report.failed:
                    failed.write_text(report.nodeid, encoding="utf-8")

        loaded = ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # plugins that are imported already
        code = pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *loaded, *tests], plugins=[Noting()])
        os._exit(int(code))
    started = time.monotonic()
    while time.monotonic() - started < limit:
        if (ended := os.waitpid(process, os.WNOHANG))[0]:
            if os.waitstatus_to_exitcode(ended[1]) == 0:
                return ""
            return failed.read_text(encoding="utf-8") if failed.exists() else IMPORT
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return TIMED_OUT


def killer(mutation: Mutation, folder: Path, tests: Sequence[str], *, limit: float, sound: dict[str, bool]) -> str:
    """The test that fails with a mutation, or ``TIMED_OUT`` or ``IMPORT``; ``""`` if none does.

    A test counts only if it passes by itself without the mutation, which ``sound`` remembers.
    """
    path = folder / PACKAGE / mutation.file
    source = path.read_text(encoding="utf-8")
    mutated = next(text for each, text in mutations(source, mutation.file) if each == mutation)
    while tests:
        path.write_text(mutated, encoding="utf-8")
        failed = run_tests(folder, tests, limit=limit)
        path.write_text(source, encoding="utf-8")
        if failed in ("", TIMED_OUT, IMPORT):
            return failed
        if failed not in sound:
            sound[failed] = not run_tests(folder, [failed], limit=limit)
            if not sound[failed]:
                typer.echo(f"{failed} also fails without a mutation", err=True)
        if sound[failed]:
            return failed
        tests = [name for name in tests if name != failed.partition("[")[0]]
    return ""


def main(
    coverage: Annotated[Path, typer.Option(help="What benchmarks/coverage_by_test.py wrote")],
    rooms: Annotated[str, typer.Option(help="Folders or files of the package, with commas between them")] = ",".join(
        ROOMS
    ),
    sample: Annotated[int, typer.Option(help="Mutations of each file")] = 4,
    seed: Annotated[int, typer.Option(help="Which of them")] = 0,
    most: Annotated[float, typer.Option(help="Recorded seconds of the tests that are run for a mutation")] = 120.0,
    out: Annotated[Path | None, typer.Option(help="File for the outcomes, as lines of JSON")] = None,
    again: Annotated[Path | None, typer.Option(help="Try those again that survived in an earlier --out")] = None,
) -> None:
    """Try a sample of mutations."""
    os.environ |= {"PYTEST_XDIST_WORKER": "gw0", "OMP_NUM_THREADS": "1"}  # as one worker of the tests
    survivors = None if again is None else {_key(each) for each in _read(again) if not each["killed"]}
    counts: collections.Counter[tuple[str, bool]] = collections.Counter()
    sound: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkout"
        for name in ("src", "tests", "presets", "docs", "benchmarks", ".ci"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        os.environ["PYTHONPATH"] = str(folder / "src")  # of commands that tests start
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutation may be written within one tick of the clock
        recorded = Recorded.read(coverage, root=folder)
        _preload()
        for room in rooms.split(","):
            for mutation in sampled(room, sample=sample, seed=seed, root=folder):
                if survivors is not None and _key(asdict(mutation)) not in survivors:
                    continue
                tests = tests_for(mutation, recorded, most=most, root=folder)
                limit = MARGIN + 3 * sum(recorded.seconds.get(name, MARGIN) for name in tests)
                killed = killer(mutation, folder, tests, limit=limit, sound=sound)
                counts[room, bool(killed)] += 1
                if not killed:
                    typer.echo(f"{mutation.file}:{mutation.line}: `{mutation.before}` -> `{mutation.after}`")
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        row = {**asdict(mutation), "room": room, "killed": killed, "tests": len(tests)}
                        file.write(json.dumps(row) + "\n")
    for room in rooms.split(","):
        if all_of_them := counts[room, True] + counts[room, False]:
            typer.echo(f"{room}: {counts[room, True]} of {all_of_them} killed")


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
