"""Files are written through ``files.durable``: replaced as a whole, or appended to. ffmpeg is given URLs of files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise

import pytest

from test_structure import FILES, tree_of

FREE = {  # modules that may write by themselves, and why
    "files.durable": "it is the helper",
    "cli.streams": "opens the null device",
    "download.web": "writes the partial file of a download, under the lock of its folder",
    "files.tensors": "puts the header in order of a file that `replacing` has not put in place yet",
    "serve.decoding": "writes into the temporary folder of an upload",
    "serve.exports": "writes into the temporary folder of a download",
    "serve.uploads": "writes into the temporary folder of an upload",
    **dict.fromkeys(
        (name for name in FILES if name.startswith("training.embedded.")),
        "scripts that make the embedded model, run from a checkout",
    ),
}
ENCODERS = (
    "runs.video",
    "evaluation.speed",
    "evaluation.trial",
)  # they write a segment that is appended later, or a file in a temporary folder
FFMPEG = (
    "runs.video",
    "runs.export",
    "evaluation.rendition",
    "files.clip",
    "serve.pictures",
)  # modules that start ffmpeg
WRITING = (
    "write_text",
    "write_bytes",
    "savefig",
    "save",
    "save_file",
    "touch",
    "imwrite",
    "tofile",
    "to_csv",
    "VideoWriter",
    "copyfile",
    "copy2",
    "copytree",
    "mkdir",
)
OPENING = ("open", "fdopen", "ZipFile")


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def safe_names(tree: ast.AST) -> set[str]:
    """Names of partial files that ``replacing`` yields, and of buffers in memory."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.withitem) and isinstance(node.context_expr, ast.Call):
            if called(node.context_expr) == "replacing" and isinstance(node.optional_vars, ast.Name):
                names.add(node.optional_vars.id)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and called(node.value) == "BytesIO":
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def plain_writes(tree: ast.AST, *, encodes: bool = False) -> Iterator[int]:
    """Lines that write to a file that is not one of the safe names."""
    safe = safe_names(tree)
    for node in (each for each in ast.walk(tree) if isinstance(each, ast.Call)):
        name = called(node)
        involved = {
            each.id for each in (*node.args, node.func, getattr(node.func, "value", None)) if isinstance(each, ast.Name)
        }
        if name in WRITING and not (encodes and name == "VideoWriter"):
            if not involved & safe:
                yield node.lineno
        elif name in OPENING:
            modes = [
                each.value
                for each in (*node.args, *(word.value for word in node.keywords))
                if isinstance(each, ast.Constant)
            ]
            flags = any(isinstance(each, ast.Attribute) and each.attr.startswith("O_") for each in ast.walk(node))
            if (
                flags or any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
            ) and not involved & safe:
                yield node.lineno


@pytest.mark.parametrize("module", [name for name in FILES if name not in FREE])
def test_no_file_is_written_in_place(module: str) -> None:
    assert list(plain_writes(tree_of(module), encodes=module in ENCODERS)) == []


def test_plain_writes_are_found() -> None:
    lines = [
        "path.write_text('x')",
        "(folder / 'a').write_bytes(b'x')",
        "figure.savefig(out / 'a.png')",
        "picture.save(self.file)",
        "torch.save(state, path)",
        "save_file(tensors, path)",
        "open(path, 'w')",
        "path.open('x', encoding='utf-8')",
        "path.open(mode='ab')",
        "os.open(path, os.O_WRONLY)",
        "VideoWriter(path, fps=8)",
        "shutil.copyfile(source, folder / name)",
        "path.mkdir(parents=True)",
    ]
    for line in lines:
        assert list(plain_writes(ast.parse(line))) == [1], line
    fine = """
with replacing(target) as partial, partial.open("wb") as file:
    partial.write_text("x")
    picture.save(partial, format="PNG")
    torch.save(state, partial)
    shutil.copyfile(source, partial)
    VideoWriter(partial, fps=8)
buffer = BytesIO()
figure.savefig(buffer)
path.open("rb"); open(path); path.open(encoding="utf-8")
"""
    assert list(plain_writes(ast.parse(fine))) == []
    assert {name for name in FREE if not any(plain_writes(tree_of(name)))} <= {
        name for name in FREE if name.startswith("training.embedded.")
    }


def inputs(tree: ast.AST) -> Iterator[ast.expr]:
    """What follows ``-i`` in the arguments of ffmpeg."""
    for node in ast.walk(tree):
        elements = (
            node.elts if isinstance(node, ast.Tuple | ast.List) else node.args if isinstance(node, ast.Call) else []
        )
        for option, value in pairwise(elements):
            if isinstance(option, ast.Constant) and option.value == "-i":
                yield value


def test_ffmpeg_reads_files_by_url() -> None:
    starting = {
        name
        for name in FILES
        if any(isinstance(node, ast.Call) and called(node) == "run_ffmpeg" for node in ast.walk(tree_of(name)))
        or (
            any(
                isinstance(node, ast.Import) and {"subprocess", "imageio_ffmpeg"} & {alias.name for alias in node.names}
                for node in ast.walk(tree_of(name))
            )
            and any(
                isinstance(node, ast.Call) and called(node) in ("ffmpeg", "read_frames", "write_frames")
                for node in ast.walk(tree_of(name))
            )
        )
    }
    assert starting - {"files.ffmpeg"} == set(FFMPEG)
    for module in FFMPEG:
        for value in inputs(tree_of(module)):
            known = isinstance(value, ast.Constant) and value.value in ("pipe:0", "fd:")
            assert known or (isinstance(value, ast.Call) and called(value) == "file_url"), (module, value.lineno)
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "imageio_ffmpeg.read_frames",
                "imageio_ffmpeg.write_frames",
            ):
                assert isinstance(node.args[0], ast.Call) and called(node.args[0]) == "file_url", node.lineno
