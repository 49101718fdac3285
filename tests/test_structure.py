"""The package's structure: imports without circles, and a library that knows no command line."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/llrag_cli"
FILES = {  # by dotted name without the package's own: `runs.folder`
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")  # only they stand above the command line
}
LAYERS = [
    "cli",
    "serve",
    "parity",
    "training",
    "evaluation",
    "batch",
    "runs",
    "engine",
    "planning",
    "scenes",
    "download",
    "models",
    "world",
    "presets",
    "config",
    "memory",
    "cache",
    "sampling",
    "files",
    "formatting",
    "signals",
    "errors",
]  # an import may only lead downwards
SCRIPTS = (  # run with `python -m`, with options of their own
    "training.embedded.train",
    "training.embedded.evaluate",
    "training.embedded.evaluate_scenes",
)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def for_types_only(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, which imports nothing when the package runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, *, with_types: bool) -> Iterator[str]:
    """Modules of the package that a piece of code imports, anywhere in it."""
    for child in ast.iter_child_nodes(node):
        if for_types_only(child) and not with_types:
            continue
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            if child.module == "llrag_cli" or (child.module or "").startswith("llrag_cli."):
                origin = (child.module or "").removeprefix("llrag_cli").removeprefix(".")
                for alias in child.names:
                    name = f"{origin}.{alias.name}".strip(".")
                    yield name if name in FILES else origin
        elif isinstance(child, ast.Import):
            yield from (
                alias.name.removeprefix("llrag_cli.") for alias in child.names if alias.name.startswith("llrag_cli.")
            )
        else:
            yield from imports(child, with_types=with_types)


def graph(*, with_types: bool) -> dict[str, set[str]]:
    return {module: set(imports(tree_of(module), with_types=with_types)) - {module} for module in FILES}


def room(module: str) -> str:
    return module.split(".")[0]


def rooms(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Imports between top-level folders and files."""
    between: dict[str, set[str]] = {room(module): set() for module in modules}
    for module, imported in modules.items():
        between[room(module)] |= {room(name) for name in imported} - {room(module)}
    return between


def circle(dependencies: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(dependencies).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_are_read() -> None:
    modules = graph(with_types=True)
    assert set().union(*modules.values()) <= FILES.keys()
    assert "engine.pipeline" in modules["runs.maker"]
    assert "cli.console" in modules["cli.main"]  # `from llrag_cli.cli import console`


@pytest.mark.parametrize("with_types", [False, True])
def test_modules_import_each_other_in_no_circle(with_types: bool) -> None:
    assert circle(graph(with_types=with_types)) == []


@pytest.mark.parametrize("with_types", [False, True])
def test_folders_import_each_other_in_no_circle(with_types: bool) -> None:
    assert circle(rooms(graph(with_types=with_types))) == []


def test_imports_lead_downwards() -> None:
    upward = {
        (importer, imported)
        for importer, names in rooms(graph(with_types=True)).items()
        for imported in names
        if LAYERS.index(imported) <= LAYERS.index(importer)
    }
    assert upward == set()


def test_only_the_command_line_imports_the_command_line() -> None:
    modules = graph(with_types=True)
    assert [name for name, imported in modules.items() if room(name) != "cli" and "cli" in map(room, imported)] == []


def test_only_the_console_prints_and_it_knows_no_markup() -> None:
    """Names and prompts hold brackets, which rich would read as styles and leave out."""
    for module in FILES:
        calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
        printing = {ast.unparse(call.func) for call in calls} & {
            "Console",
            "_Console",
            "rich.print",
            "Spinner",
            "Text.from_markup",
        }
        assert printing == ({"_Console"} if module == "cli.console" else set()), module
        for call in calls:
            if ast.unparse(call.func) == "_Console":
                assert "**_PLAIN" in ast.unparse(call)


def strings(module: str) -> Iterator[tuple[int, str]]:
    """String constants of a module, with their lines, other than docstrings and a script's own option declarations."""
    tree = tree_of(module)
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # docstrings, also of attributes
            left_out.add(node.value)
        declared = isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option"
        if declared and module in SCRIPTS:
            left_out |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.lineno, node.value


@pytest.mark.parametrize("module", [name for name in FILES if room(name) != "cli"])
def test_strings_of_the_library_name_no_flag_and_no_command(module: str) -> None:
    spoken = re.compile(r"(?<![\w-])--[a-z]|`llrag [a-z]")
    assert [(line, text) for line, text in strings(module) if spoken.search(text)] == []


def test_no_two_test_files_share_a_name() -> None:
    """Pytest imports them by their names alone, and refuses the second one of a whole run."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []
