"""Hostile files: how each is made."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from llrag_cli.models.embedded.family import FAMILY

Make = Callable[[Path], object]
ENCODER = FAMILY.bundled_encoder


def text(name: str, content: str | bytes) -> Make:
    """A file with a content."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """The bytes of a safetensors file, whatever its header says."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def tensor(start: int, stop: int, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    """An entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def encoder(*, config: Any = None, change: Callable[[dict[str, Any]], object] = lambda state: None) -> Make:
    """The bundled encoder with another configuration, or with changed tensors, as `e.safetensors`."""

    def make(folder: Path) -> None:
        state = load_file(ENCODER)
        change(state)
        with ENCODER.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        known = header["__metadata__"]["config"]
        if config is not None:
            known = json.dumps(json.loads(known) | config) if isinstance(config, dict) else config
        save_file(state, folder / "e.safetensors", metadata={"config": known})

    return make


def pickled(name: str, content: Any, *, compressed: bool = False) -> Make:
    """A checkpoint of torch."""

    def make(folder: Path) -> None:
        torch.save(content, folder / name)
        if compressed:
            with zipfile.ZipFile(folder / name) as archive:
                entries = {each: archive.read(each) for each in archive.namelist()}
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for each, data in entries.items():
                    archive.writestr(each, data)

    return make


class Runs:
    """Copies of one finished run, each with a file changed."""

    folder: Path  # of the finished run

    def copied(self, *changes: Make) -> Make:
        """The run as `run`, and what is done to it."""

        def make(folder: Path) -> None:
            shutil.copytree(self.folder, folder / "run")
            for change in changes:
                change(folder / "run")

        return make

    def record(self, **changes: Any) -> Make:
        """With other values of `run.json`, by dotted name (`__` for a dot), and unfinished."""

        def change(run: Path) -> None:
            content = json.loads((run / "run.json").read_text())
            for name, value in changes.items():
                *sections, last = name.split("__")
                inner = content
                for section in sections:
                    inner = inner[int(section)] if section.isdigit() else inner[section]
                inner[last] = value
            (run / "run.json").write_text(json.dumps(content))

        return self.copied(change)

    def lines(self, file: str, number: int, line: str | Mapping[str, Any], *, unfinished: bool = False) -> Make:
        """With a line of a log replaced, or some of its values."""

        def change(run: Path) -> None:
            lines = (run / file).read_text().splitlines()
            old = json.loads(lines[number])
            lines[number] = line if isinstance(line, str) else json.dumps(old | dict(line))
            (run / file).write_text("\n".join(lines) + "\n")
            if unfinished:
                record = json.loads((run / "run.json").read_text())
                (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))

        return self.copied(change)


RUNS = Runs()


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + closing * depth


def png(name: str, width: int, height: int, *, chunk: bytes = b"") -> Make:
    """A PNG that declares a size and holds next to nothing."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")
    return text(name, content)


def text_bomb(name: str) -> Make:
    """A PNG whose comment is a gigabyte of zeros when it is unpacked."""

    def make(folder: Path) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        block = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)  # which can be repeated
        checksum = struct.pack(">I", 2**30 % 65521 << 16 | 1)  # Adler-32 of zeros
        data = b"Comment\0\0" + b"\x78\xda" + 1024 * block + b"\x03\0" + checksum
        chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
        png(name, 64, 64, chunk=chunk)(folder)

    return make


def blank_png(name: str, side: int) -> Make:
    """A picture that is small on disk and large in memory."""
    return lambda folder: Image.new("L", (side, side)).save(folder / name)


def picture(name: str, mode: str = "RGB") -> Make:
    return lambda folder: Image.fromarray(np.zeros((8, 8, 3), np.uint8)).convert(mode).save(folder / name)


def many_texts(name: str) -> Make:
    def make(folder: Path) -> None:
        about = PngImagePlugin.PngInfo()
        packed = zlib.compress(b"x" * 900_000)
        for number in range(200):
            about.add(b"zTXt", f"k{number}".encode() + b"\0\0" + packed)
        Image.new("RGB", (8, 8)).save(folder / name, pnginfo=about)

    return make
