"""The attacks: files of every kind that the program reads, and arguments."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import torch

from attacks.harness import Attack
from attacks.makers import (
    RUNS,
    Make,
    blank_png,
    encoder,
    many_texts,
    nested,
    pickled,
    png,
    safetensors,
    tensor,
    text,
    text_bomb,
)

GENERATE = ("generate", "a red circle", "--seconds", "1", "--out", "out")
INSPECT, RESUME = ("inspect", "run"), ("generate", "--resume", "run")
EXTEND, EXPORT = ("extend", "run", "--seconds", "1"), ("export", "run", "--out", "out")
COLLECT = ("collect", "p.txt", "--out", "c", "--seconds", "1")
BIG = 2**62
LOCKS = r"run/run\.(lock|owner)|run"
CREATED = r"(c|out)(/(run\.)?lock)?"


class _Huge:
    """Unpickled, it asks for 100 GB."""

    def __reduce__(self) -> tuple[object, ...]:
        return bytearray, (10**11,)


def _encoders() -> list[Attack]:
    def with_encoder(name: str, says: str, content: bytes) -> Attack:
        return Attack(
            f"encoder: {name}", says, (*GENERATE, "--encoder", "e.safetensors"), text("e.safetensors", content)
        )

    def changed(name: str, says: str, **changes: object) -> Attack:
        return Attack(f"encoder: {name}", says, (*GENERATE, "--encoder", "e.safetensors"), encoder(**changes))  # type: ignore[arg-type]

    def torch_file(name: str, says: str, make: object) -> Attack:
        return Attack(f"encoder: {name}", says, (*GENERATE, "--encoder", "e.pt"), make)  # type: ignore[arg-type]

    whole = {"a": tensor(0, 4, [1])}
    return [
        with_encoder("empty", "/e.safetensors` cannot be read", b""),
        with_encoder("four bytes", "cannot be read", b"abcd"),
        with_encoder("noise", "cannot be read", bytes(range(256)) * 20),
        with_encoder("header of 2^63 bytes", "longer than the file", safetensors(whole, length=2**63)),
        with_encoder("header longer than the file", "longer than the file", safetensors(whole, length=10**6)),
        with_encoder("header of 200 MB", "header", safetensors(b" " * (200 * 2**20))),
        with_encoder("header of no JSON", "JSON", safetensors(b"{broken")),
        with_encoder("header of a list", "header", safetensors([])),
        with_encoder("header of another encoding", "UTF-8", safetensors(b'{"\xff": 1}')),
        with_encoder("header nested deep", "nested", safetensors(nested(100_000).encode())),
        with_encoder("header with infinity", "finite", safetensors(b'{"a": {"dtype": "F32", "shape": [Infinity]}}')),
        with_encoder("header with a long number", "header", safetensors(b'{"a": ' + b"9" * 5000 + b"}")),
        with_encoder("a tensor twice", "twice", safetensors(b'{"a": {}, "a": {}}')),
        with_encoder("cut off", "beyond the end", safetensors(whole)),
        with_encoder(
            "overlapping", "overlap", safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"0" * 12)
        ),
        with_encoder("with a gap", "gap", safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"0" * 12)),
        with_encoder("with a tail", "no tensor", safetensors(whole, b"0" * 400)),
        with_encoder("negative offsets", "offsets", safetensors({"a": tensor(-4, 4, [2])}, b"0" * 8)),
        with_encoder("offsets backwards", "offsets", safetensors({"a": tensor(8, 0, [2])}, b"0" * 8)),
        with_encoder("a shape of text", "shape", safetensors({"a": tensor(0, 4, "1")}, b"0" * 4)),
        with_encoder("a shape of booleans", "shape", safetensors({"a": tensor(0, 4, [True])}, b"0" * 4)),
        with_encoder("a negative shape", "shape", safetensors({"a": tensor(0, 4, [-1, -1])}, b"0" * 4)),
        with_encoder("a shape that overflows", "shape", safetensors({"a": tensor(0, 0, [BIG, 4])})),
        with_encoder("an empty shape that is huge", "shape", safetensors({"a": tensor(0, 0, [0, 10**30])})),
        with_encoder("a shape of 1000 axes", "shape", safetensors({"a": tensor(0, 4, [1] * 1000)}, b"0" * 4)),
        with_encoder("an unknown dtype", "dtype", safetensors({"a": tensor(0, 4, [1], "Q9")}, b"0" * 4)),
        with_encoder("a dtype of numbers", "dtype", safetensors({"a": tensor(0, 4, [1], 7)}, b"0" * 4)),
        with_encoder("metadata of a list", "metadata", safetensors({"__metadata__": [1]})),
        with_encoder("metadata of numbers", "metadata", safetensors({"__metadata__": {"config": 1}})),
        with_encoder("no metadata", "no `config`", safetensors(whole, b"0" * 4)),
        changed("config of no JSON", "config", config="{"),
        changed("config of a list", "config", config="[]"),
        changed("config nested deep", "config", config=nested(100_000)),
        changed("keys of 10^12 numbers", "latent_dim", config={"latent_dim": 10**12}),
        changed("layers of 100000", "hidden_dims", config={"hidden_dims": [100_000] * 6}),
        changed("layers of 100000, one stage", "hidden_dims", config={"hidden_dims": [100_000]}),
        changed("a million layers", "config", config={"hidden_dims": [1] * 10**6}),
        changed("layers of 0", "hidden_dims", config={"hidden_dims": [0]}),
        changed("negative layers", "hidden_dims", config={"hidden_dims": [-8]}),
        changed("layers that do not fit", "shape", config={"hidden_dims": [64, 256]}),
        changed("latents of 10^9 rows", "spatial", config={"spatial_h": 10**9, "spatial_w": 10**9}),
        changed("a large decoder", "", config={"spatial_h": 30_000, "spatial_w": 30_000}),
        changed("an infinite size", "config", config='{"latent_dim": Infinity}'),
        changed("a tensor less", "lacks", change=lambda state: state.pop("encoder.fc.bias")),
        changed("a tensor more", "unknown", change=lambda state: state.update(more=torch.ones(3))),
        changed(
            "a tensor of another shape", "shape", change=lambda state: state.update({"encoder.fc.bias": torch.ones(3)})
        ),
        changed(
            "a tensor of integers",
            "int64",
            change=lambda state: state.update({"encoder.fc.bias": state["encoder.fc.bias"].long()}),
        ),
        changed(
            "float64 beyond float32",
            "not finite",
            change=lambda state: state.update({"encoder.fc.bias": state["encoder.fc.bias"].double() + 1e300}),
        ),
        changed(
            "float8 of NaN",
            "not finite",
            change=lambda state: state.update(
                {"encoder.fc.bias": torch.full((128,), torch.nan).to(torch.float8_e4m3fn)}
            ),
        ),
        changed(
            "weights of 3e38",
            "makes no keys",
            change=lambda state: state.update({name: torch.full(each.shape, 3e38) for name, each in state.items()}),
        ),
        changed("weights of zeros", "makes no keys", change=lambda state: [each.zero_() for each in state.values()]),
        changed(
            "a tensor of NaN",
            "not finite",
            change=lambda state: state.update({"encoder.fc.bias": state["encoder.fc.bias"] * torch.nan}),
        ),
        Attack(
            "encoder: a folder", "no such file", (*GENERATE, "--encoder", "e"), lambda folder: (folder / "e").mkdir()
        ),
        Attack(
            "encoder: a pipe",
            "no such file",
            (*GENERATE, "--encoder", "e.safetensors"),
            lambda folder: os.mkfifo(folder / "e.safetensors"),
        ),
        torch_file("torch, noise", "cannot be read", text("e.pt", b"PK\x03\x04" + bytes(range(256)))),
        torch_file("torch, a list", "not a retrieval encoder", pickled("e.pt", [1, 2])),
        torch_file("torch, a config of text", "config", pickled("e.pt", {"model": {}, "config": "abc"})),
        torch_file("torch, a model of numbers", "model", pickled("e.pt", {"model": {"a": 1}, "config": {}})),
        torch_file(
            "torch, tensors larger than the file",
            "",
            pickled("e.pt", {"model": {"a": torch.ones(1).expand(100_000, 100_000)}, "config": {}}),
        ),
        torch_file("torch, code", "cannot be read", pickled("e.pt", {"model": Path, "config": {}})),
        torch_file("torch, an array of 10^11 bytes", "byte array", pickled("e.pt", {"model": _Huge(), "config": {}})),
        torch_file(
            "torch, compressed",
            "compressed",
            pickled("e.pt", {"model": {"a": torch.zeros(2**22)}, "config": {}}, compressed=True),
        ),
    ]


def _records() -> list[Attack]:
    def record(name: str, says: str, command: tuple[str, ...] = INSPECT, **changes: object) -> Attack:
        return Attack(f"run.json: {name}", says, command, RUNS.record(**changes), writes=LOCKS)

    def whole(name: str, says: str, content: str | bytes) -> Attack:
        return Attack(f"run.json: {name}", says, INSPECT, RUNS.copied(text("run.json", content)))

    return [
        whole("empty", "is damaged", b""),
        whole("a list", "is damaged", "[]"),
        whole("noise", "is damaged", bytes(range(256))),
        whole("nested deep", "nested", nested(200_000)),
        whole("objects nested deep", "nested", '{"a":' * 50_000 + "1" + "}" * 50_000),
        whole("40 MB", "larger than", b" " * (40 * 2**20)),
        whole("a million values", "too many values", json.dumps({"config": list(range(10**6))})),
        whole("a number of 10000 digits", "is damaged", '{"config": ' + "9" * 10_000 + "}"),
        whole("half a character", "is damaged", '{"config": "\\ud83d"}'),
        whole("a key twice", "twice", '{"config": 1, "config": 2}'),
        record("infinite length", "is damaged", seconds=float("inf")),
        record("length of NaN", "is damaged", seconds=float("nan")),
        record("negative length", "is damaged", seconds=-3),
        record("length of text", "is damaged", seconds="12"),
        record("huge length", "is damaged", seconds=1e300),
        record("size of text", "is damaged", latent_shape=["8", 8, 8]),
        record("huge size", "is damaged", latent_shape=[2**40, 8, 8]),
        record("huge size that fits", "is damaged", RESUME, latent_shape=[2**20, 8, 8], status="interrupted"),
        record("2^40 frames", "is damaged", latent_frames=2**40 - 1),
        record("negative blocks", "is damaged", blocks_committed=-1),
        record("blocks of text", "is damaged", blocks_committed="7"),
        record("no configuration", "is damaged", config=None),
        record("configuration of a list", "is damaged", config=[]),
        record("memory of a list", "is damaged", config__memory=[]),
        record("memory of a strategy in a list", "is damaged", config__memory={"strategy": []}),
        record("a schema of text", "is damaged", schema_version="3"),
        record("a schema of 10^30", "schema", schema_version=10**30),
        record("schema 2 without prompts", "is damaged", schema_version=2),
        record("schema 2 without a configuration", "is damaged", schema_version=2, config__backbone={}),
        record("a shot to block 10^12", "is damaged", timeline__shots__0__stop=10**12),
        record("a shot of booleans", "is damaged", timeline__shots__0__start=False),
        record("yes as a number", "is damaged", config__memory__retrieved=True),
        record(
            "weights of a device",
            "not a regular file",
            ("extend", "run", "--seconds", "3"),
            config__backbone__weights="/dev/zero",
        ),
        record("huge window", "", EXTEND, config__memory__window=10**12, config__memory__retrieved=10**11),
        record("version of numbers", "is damaged", versions={"torch": 1}),
        record("null characters", "is damaged", title="a\0b"),
    ]


def _logs() -> list[Attack]:
    def commit(name: str, line: object, says: str = "is damaged") -> Attack:
        make = RUNS.lines("commits.jsonl", 1, line, unfinished=True)  # type: ignore[arg-type]
        return Attack(f"commits.jsonl: {name}", says, RESUME, make, writes=LOCKS)

    def memory(name: str, line: object, says: str = "is damaged", number: int = -1) -> Attack:
        return Attack(f"memory.jsonl: {name}", says, INSPECT, RUNS.lines("memory.jsonl", number, line))  # type: ignore[arg-type]

    many = [number % 20 for number in range(20_000)]
    fewer = many[:4000]  # as many as a line may have, but more than the run retrieves
    return [
        commit("infinity", '{"block": Infinity}'),
        commit("negative", {"frames": -3}),
        commit("huge frames", {"frames": 2**52}),
        commit("huge lengths", {"memory_bytes": 2**52}),
        commit("text", {"frames": "6"}),
        commit("a boolean", {"block": True}),
        commit("a list", "[]"),
        commit("a number", "7"),
        commit("nested deep", nested(100_000)),
        commit("a long line", '{"block": "' + "x" * 10**6 + '"}'),
        commit("null", "null"),
        commit("long number", '{"block": ' + "9" * 6000 + "}"),
        memory("fewer similarities", {"similarities": [0.5]}),
        memory("more similarities", {"similarities": [0.5] * 9}),
        memory("20000 entries", {"retrieved": many, "similarities": [0.5] * len(many)}),
        memory("4000 entries", {"retrieved": [1] * len(fewer), "similarities": [0.5] * len(fewer)}),
        memory("a frame of the future", {"retrieved": [2, 10**6]}),
        memory("infinite similarity", {"similarities": [float("inf"), 0.1]}),
        memory("NaN similarity", {"similarities": [float("nan"), 0.1]}),
        memory("huge similarity", {"similarities": [1e300, 0.1]}),
        memory("frames of text", {"retrieved": ["1", "2"]}),
        memory("frames of booleans", {"retrieved": [True, False]}),
        memory("negative frames", {"retrieved": [-1, -2]}),
        memory("another block", {"block": 77}),
        memory("another frame", {"frame": 1}),
        memory("nested deep", nested(100_000)),
        memory("a list", "[]"),
        memory("sources of numbers", {"sources": [1, 2]}),
        memory("unknown sources", {"sources": ["nobody", "nowhere"]}),
        memory(
            "half a character", '{"block": 1, "frame": 3, "retrieved": [], "similarities": [], "sources": ["\\ud83d"]}'
        ),
        Attack("memory.jsonl: noise", "is damaged", INSPECT, RUNS.copied(text("memory.jsonl", bytes(range(256)) * 9))),
        Attack(
            "memory.jsonl: 100 MB", "larger than", INSPECT, RUNS.copied(text("memory.jsonl", b"\n" * (100 * 2**20)))
        ),
        Attack("memory.jsonl: blank lines", "is damaged", INSPECT, RUNS.copied(text("memory.jsonl", b"\n" * 10**5))),
        Attack("memory.jsonl: empty", "is damaged", INSPECT, RUNS.copied(text("memory.jsonl", b""))),
        Attack("video: empty", "cannot be read", INSPECT, RUNS.copied(text("video.mp4", b""))),
        Attack("video: noise", "cannot be read", INSPECT, RUNS.copied(text("video.mp4", bytes(range(256)) * 99))),
        Attack(
            "video: noise, exported",
            "has changed since it was written",
            EXPORT,
            RUNS.copied(text("video.mp4", bytes(range(256)) * 99)),
            writes="out(/.*)?",
        ),
        Attack(
            "latents: empty",
            "is damaged",
            RESUME,
            RUNS.copied(text("latents.safetensors", b""), _unfinished),
            writes=LOCKS,
        ),
    ]


def _unfinished(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))


def _other_records() -> list[Attack]:
    def collection(name: str, content: str | bytes) -> Attack:
        def make(folder: Path) -> None:
            (folder / "c").mkdir()
            (folder / "c/collection.json").write_bytes(content.encode() if isinstance(content, str) else content)
            (folder / "p.txt").write_text("a red circle\n")

        return Attack(f"collection.json: {name}", "collection.json", COLLECT, make)

    def downloads(name: str, content: str) -> Attack:
        command = ("download", "weights", "encoder", "--to", ".", "--dry-run")
        return Attack(f"downloads.json: {name}", "downloads.json", command, text("downloads.json", content))

    def study(name: str, file: str, content: str | bytes) -> Attack:
        def make(folder: Path) -> None:
            (folder / "s").mkdir()
            (folder / "s/settings.json").write_text("{}")
            (folder / "s" / file).write_bytes(content.encode() if isinstance(content, str) else content)

        return Attack(f"{file}: {name}", "s", ("bench", "leave-and-return", "--scenes", "1", "--out", "s"), make)

    def row(**changes: object) -> str:
        shares = {"wall": 1, "color": 1, "shape": 1}
        content = {"scene": 1, "seed": 0, "shot": "A", "of_a": shares, "of_b": shares, "retrieved_of_a": None}
        return json.dumps(content | changes) + "\n"

    def latents(name: str, says: str, content: bytes) -> Attack:
        def make(folder: Path) -> None:
            (folder / "l").mkdir()
            for number in range(2):
                (folder / f"l/latent_{number:06d}.safetensors").write_bytes(content)

        command = ("train-encoder", "--latents", "l", "--out", "e.safetensors", "--epochs", "1")
        return Attack(f"latents: {name}", says, command, make, writes=r"e\.training.*")

    integers = safetensors({"latents": tensor(0, 9 * 512 * 8, [9, 8, 8, 8], "I64")}, b"\0" * (9 * 512 * 8))
    contents = {"a list": "[]", "a number": "1", "nested deep": nested(100_000), "noise": "\x00\xff", "empty": ""}
    return [
        *(collection(name, content) for name, content in contents.items()),
        collection("invalid text", b"\xff\xfe"),
        collection("infinity", '{"seconds": Infinity}'),
        *(downloads(name, content) for name, content in contents.items()),
        downloads("a list with a number", "[1]"),
        downloads("pairs", '[["a", 1]]'),
        downloads("an entry of a number", '{"ae_latent_mem.safetensors": 1}'),
        downloads("an empty entry", '{"ae_latent_mem.safetensors": {}}'),
        downloads(
            "numbers", '{"ae_latent_mem.safetensors": {"repo": 1, "path": 1, "sha256": 1, "commit": 1, "dtype": 1}}'
        ),
        *(study(name, "settings.json", content) for name, content in contents.items()),
        *(study(name, "rows.jsonl", content + "\n") for name, content in contents.items() if content),
        study(
            "text",
            "rows.jsonl",
            row(scene="1"),
        ),
        study(
            "infinity",
            "rows.jsonl",
            row(of_a={"wall": float("inf"), "color": 1, "shape": 1}),
        ),
        study(
            "no numbers",
            "rows.jsonl",
            row(of_a={}),
        ),
        latents("integers", "int64", integers),
        latents("no frames", "latents", safetensors({"latents": tensor(0, 0, [0, 8, 8, 8])})),
        latents("noise", "cannot be read", bytes(range(256)) * 8),
        latents("one axis", "latents", safetensors({"latents": tensor(0, 4, [1])}, b"0" * 4)),
        latents("NaN", "not finite", safetensors({"latents": tensor(0, 2048, [1, 8, 8, 8])}, b"\xff" * 2048)),
    ]


def _settings() -> list[Attack]:
    names = list("abcdefgh")
    lists = [f"&{new} [{','.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    aliases = f"[&a [1], {', '.join(lists)}]"
    values = {
        "a date": "2026-99-99",
        "a tag": "!!int foo",
        "an empty binary": "0b_",
        "5000 digits": "9" * 5000,
        "an object": "!!python/object/apply:os.system [ls]",
        "a timestamp": "!!timestamp foo",
        "bytes": "!!binary \xe9",
        "nested deep": nested(5000),
        "a list of itself": "&a [*a]",
        "aliases": aliases,
        "an unknown alias": "*nothing",
        "half a character": '"\\ud83d"',
        "yes": "yes",
        "infinity": ".inf",
        "NaN": ".nan",
        "a fraction": "4.5",
        "two documents": "--- 1 --- 2",
        "a mapping key of lists": "{[1]: 2}",
        "10^18": "1000000000000000000",
    }
    attacks = [
        Attack(f"--set: {name}", "memory.retrieved", (*GENERATE, "--set", f"memory.retrieved={value}"))
        for name, value in values.items()
    ]
    others = {
        "weights of the embedded model": "backbone.weights=/etc/passwd",
        "a LoRA of the embedded model": "backbone.lora=x.safetensors",
        "a base of the embedded model": "backbone.base=x",
        "yes as a step": "sampler.steps=[yes]",
        "a float as a flag": "sampler.warp=1.0",
        "an encoder with a null character": 'memory.encoder="a\\0b"',
        "infinite shift": "sampler.shift=.inf",
        "infinite context timestep": "sampler.context_timestep=.nan",
        "huge height": "backbone.height=1000000000000",
        "huge rate": "backbone.fps=100000000000000000000",
        "a million steps": f"sampler.steps=[{','.join(['1'] * 1000)}]",
        "other latent size": "backbone.height=9",
    }
    attacks += [Attack(f"--set: {name}", "", (*GENERATE, "--set", value)) for name, value in others.items()]
    return attacks


def _presets() -> list[Attack]:
    def preset(name: str, says: str, content: str | bytes) -> Attack:
        return Attack(f"preset: {name}", says, (*GENERATE, "--backbone", "p.yaml"), text("p.yaml", content))

    good = "backbone: {family: tiny}\n"
    laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    maps = "a: &a {x: 1}\n" + "".join(
        f"{new}: &{new} {{{', '.join(f'k{n}: *{old}' for n in range(9))}}}\n"
        for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    merges = "a: &a {x: 1}\n" + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
        for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    return [
        preset("aliases", "alias", laughs),
        preset("aliases of mappings", "alias", maps),
        preset("aliases of merges", "alias", merges),
        preset("an alias of itself", "alias", "backbone: &a\n  family: *a\n"),
        preset("a list of itself", "alias", "backbone: &a [*a]\n"),
        preset("a merge of itself", "", "backbone: &a\n  <<: *a\n"),
        preset("nested deep", "nest", "backbone: " + nested(2000)),
        preset("100000 keys", "too many values", "".join(f"k{n}: 1\n" for n in range(100_000))),
        preset("5 MB", "larger than", good + "#" * (5 * 2**20)),
        preset("a date", "", good + "about: 2026-99-99\n"),
        preset("a tag", "", good + "about: !!int foo\n"),
        preset("an object", "", good + "about: !!python/object/apply:os.system [ls]\n"),
        preset("5000 digits", "", good + f"video: {{crf: {'9' * 5000}}}\n"),
        preset("invalid text", "UTF-8", b"backbone: {family: \xff}\n"),
        preset("control characters", "", "backbone: {family: \x01}\n"),
        preset("a null character", "", 'backbone: {family: tiny}\nabout: "a\\0b"\n'),
        preset("keys of numbers", "", "1: 2\n"),
        preset("keys of lists", "", "[1]: 2\n"),
        preset("keys of null", "", "null: 2\n"),
        preset("a key twice", "twice", good + good),
        preset("empty", "", ""),
        preset("two documents", "", good + "---\n" + good),
        preset("a timestamp", "", good + "video: {crf: 2026-01-01}\n"),
        preset("a set", "", "backbone: !!set {a, b}\n"),
        preset("yes as a number", "", "backbone: {family: tiny, fps: yes}\n"),
        preset("infinity", "", good + "sampler: {shift: .inf}\n"),
        Attack(
            "preset: a folder",
            "folder",
            (*GENERATE, "--backbone", "p.yaml"),
            lambda folder: (folder / "p.yaml").mkdir(),
        ),
        Attack(
            "preset: a pipe",
            "regular file",
            (*GENERATE, "--backbone", "p.yaml"),
            lambda folder: os.mkfifo(folder / "p.yaml"),
        ),
        Attack(
            "preset: a device",
            "",
            (*GENERATE, "--backbone", "p.yaml"),
            lambda folder: (folder / "p.yaml").symlink_to("/dev/zero"),
        ),
        Attack(
            "preset: a link to itself",
            "",
            (*GENERATE, "--backbone", "p.yaml"),
            lambda folder: (folder / "p.yaml").symlink_to("p.yaml"),
        ),
        Attack(
            "preset: of training",
            "",
            ("train-encoder", "--latents", "l", "--out", "e.safetensors", "--preset", "p.yaml"),
            text("p.yaml", laughs),
        ),
        Attack("scene: aliases", "alias", ("generate", "--scene", "p.yaml", "--out", "out"), text("p.yaml", laughs)),
        Attack(
            "scene: JSON nested deep",
            "nested",
            ("generate", "--scene", "p.json", "--out", "out"),
            text("p.json", nested(100_000)),
        ),
        Attack(
            "scene: JSON with infinity",
            "finite",
            ("generate", "--scene", "p.json", "--out", "out"),
            text("p.json", '{"shots": [{"prompt": "a", "seconds": Infinity}]}'),
        ),
        Attack(
            "scene: JSON with a null character",
            "null",
            ("generate", "--scene", "p.json", "--out", "out"),
            text("p.json", '{"shots": [{"prompt": "a\\u0000", "seconds": 1}]}'),
        ),
    ]


def _pictures() -> list[Attack]:
    framewise = (*GENERATE, "--set", "backbone.frames_per_block=1", "--image", "p.png")

    def image(name: str, says: str, make: object) -> Attack:
        return Attack(f"picture: {name}", says, framewise, make)  # type: ignore[arg-type]

    return [
        image("a header of 100000 x 100000", "pixels", png("p.png", 100_000, 100_000)),
        image("a header of 2^31 x 1", "", png("p.png", 2**31 - 1, 1)),
        image("a header of 0 x 0", "", png("p.png", 0, 0)),
        image("cut off", "", png("p.png", 2000, 2000)),
        image("13000 x 13000", "pixels", blank_png("p.png", 13_000)),
        image("a text bomb", "", text_bomb("p.png")),
        image("200 texts", "", many_texts("p.png")),
        image("noise", "", text("p.png", bytes(range(256)))),
        image("empty", "", text("p.png", b"")),
        image("a folder", "", lambda folder: (folder / "p.png").mkdir()),
        image("a pipe", "", lambda folder: os.mkfifo(folder / "p.png")),
        image("PostScript", "", text("p.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")),
        Attack(
            "picture: as a reference", "pixels", (*GENERATE, "--reference", "mara=p.png"), png("p.png", 60_000, 60_000)
        ),
    ]


def _arguments() -> list[Attack]:
    prompts = text("p.txt", b"a red \xff circle\n")
    return [
        Attack("argument: a prompt that is no text", "UTF-8", ("generate", "a \udcff circle", "--out", "out")),
        Attack("argument: a setting that is no text", "UTF-8", (*GENERATE, "--set", "memory.encoder=\udcff")),
        Attack("argument: a shot that is no text", "UTF-8", (*GENERATE, "--then", "8s: \udcff")),
        Attack(
            "argument: a new prompt that is no text", "UTF-8", ("extend", "run", "--prompt", "\udcff"), RUNS.copied()
        ),
        Attack("argument: a folder that is no text", "UTF-8", ("generate", "a", "--seconds", "1", "--out", "\udcff")),
        Attack("prompts: no text", "UTF-8", ("generate", "--prompts", "p.txt", "--out", "out"), prompts),
        Attack("prompts: no text, collected", "UTF-8", COLLECT, prompts),
        Attack("prompts: null characters", "", COLLECT, text("p.txt", "a\0b\n")),
        Attack("prompts: a line of 3 MB", "", COLLECT, text("p.txt", "a " * 1_500_000)),
        Attack("prompts: 100 MB", "larger than", COLLECT, text("p.txt", b"a\n" * (50 * 2**20))),
        Attack("prompts: a pipe", "", COLLECT, lambda folder: os.mkfifo(folder / "p.txt")),
        Attack("prompts: a folder", "", COLLECT, lambda folder: (folder / "p.txt").mkdir()),
        *(
            Attack(f"a long name: {' '.join(word[:20] for word in command)}", "too long", command)
            for command in (
                ("generate", "a", "--seconds", "1", "--out", "x" * 300),
                ("generate", "a", "--seconds", "1", "--out", "y/" * 3000),
                ("generate", "--resume", "x" * 300),
                ("generate", "--prompts", "x" * 300, "--out", "o"),
                ("generate", "--scene", "x" * 300, "--out", "o"),
                ("generate", "a", "--backbone", "x" * 300 + ".yaml", "--out", "o"),
                ("generate", "a", "--encoder", "x" * 300, "--out", "o"),
                ("generate", "a", "--set", "backbone.frames_per_block=1", "--image", "x" * 300, "--out", "o"),
                ("generate", "a", "--out", "o", "--video", "x" * 300),
                ("generate", "a", "--out", "o", "--reference", "a=" + "x" * 300),
                ("inspect", "--out", "o", "x" * 300),
                ("export", "--out", "o", "x" * 300),
                ("extend", "--seconds", "1", "x" * 300),
                ("bench", "--count", "1", "--out", "x" * 300),
                ("bench", "score", "x" * 300),
                ("bench", "leave-and-return", "--out", "x" * 300),
                ("train-encoder", "--out", "e.safetensors", "--latents", "x" * 300),
                ("download", "weights", "--dry-run", "--to", "x" * 300),
                ("verify", "x" * 300),
                ("evaluate-encoder", "--latents", "x" * 300),
                ("storyboard", "x" * 300),
                ("scene", "check", "x" * 300),
            )
        ),
        Attack("seeds: 10^9", "", ("bench", "--seeds", "1000000000", "--dry-run", "--out", "b")),
        Attack("seeds: 10^9 of a study", "", ("bench", "leave-and-return", "--seeds", "1000000000", "--out", "b")),
        Attack("suite: no prompt", "at least one prompt", ("bench", "--suite", "paper", "--count", "0", "--dry-run")),
        Attack("suite: seed 2^70", "the seed", ("bench", "--suite", "paper", "--seed", str(2**70), "--dry-run")),
        Attack("seed of a benchmark: -2^63", "the seed", ("bench", "--seed", str(-(2**63) - 1), "--dry-run")),
        *(
            Attack(f"page size: {size[:9]}{len(size)}", "not an amount", ("bench", "--page-size", size, "--dry-run"))
            for size in ("9" * 300 + "TB", "1e308TB", "9" * 5000, "0", "-1MB", "nan", "٣٣x")
        ),
        Attack("choice: 5000 characters", "unknown word", ("bench", "speed", "--choice", "x" * 5000)),
        Attack("count: 10^9", "", ("bench", "--count", "1000000000", "--dry-run", "--out", "b")),
        Attack("seed: 10^30", "", (*GENERATE, "--seed", "1" + "0" * 30)),
        Attack("seed: negative of 10^30", "", (*GENERATE, "--seed", "-1" + "0" * 30)),
        Attack("batch: 0", "batch", (*COLLECT, "--batch", "0"), text("p.txt", "a\n")),
        Attack("seconds: infinity", "", ("generate", "a", "--seconds", "inf", "--out", "out")),
        Attack("seconds: NaN", "", ("generate", "a", "--seconds", "nan", "--out", "out")),
        Attack("seconds: 1e7", "", ("generate", "a", "--seconds", "1e7", "--out", "out")),
        Attack("horizon: 1e300", "", ("bench", "--horizon", "1e300", "--dry-run", "--out", "b")),
        Attack("ratio: NaN", "fraction", (*COLLECT, "--ratio", "nan"), text("p.txt", "a\n")),
        Attack("memory budget: infinity", "", (*GENERATE, "--memory-budget", "infGB")),
        Attack("memory budget: 400 digits", "", (*GENERATE, "--memory-budget", "9" * 400 + "GB")),
        Attack(
            "engine: 0 processes",
            "",
            ("generate", "--prompts", "p.txt", "--out", "o", "--engine", "local:0"),
            text("p.txt", "a\n"),
        ),
        Attack("size: 10^9", "", (*GENERATE, "--size", "1000000000x1000000000")),
        Attack("size: 5000 digits", "", (*GENERATE, "--size", "9" * 5000 + "x16")),
        Attack("seconds: 5000 digits", "", ("generate", "a", "--seconds", "9" * 5000, "--out", "out")),
        Attack("download: a path", "unknown item", ("download", "weights", "../../x", "--to", ".", "--dry-run")),
        Attack("score: 2x2", "", ("bench", "score", "v.mp4"), _tiny_video),
        Attack("score: noise", "", ("bench", "score", "v.mp4"), text("v.mp4", bytes(range(256)))),
        Attack("score: an empty file", "", ("bench", "score", "v.mp4"), text("v.mp4", b"")),
    ]


def _checkpoints() -> list[Attack]:
    def checkpoint(name: str, says: str, header: dict[str, object], data: bytes = b"", **files: str) -> Attack:
        def make(folder: Path) -> None:
            (folder / "weights").mkdir()
            (folder / "weights/self_forcing.safetensors").write_bytes(safetensors(header, data))
            base = folder / "weights/Wan2.1-T2V-1.3B-Diffusers"
            whole = {"text_encoder__config_json": "{}", "tokenizer__tokenizer_json": "{}", "vae__config_json": "{}"}
            for file, content in {**whole, **files}.items():
                path = base / file.replace("__", "/").replace("_json", ".json")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            for part in ("text_encoder/model", "vae/diffusion_pytorch_model"):
                if not (base / f"{part}.safetensors.index.json").exists():
                    (base / f"{part}.safetensors").write_bytes(safetensors({}))

        return Attack(f"checkpoint: {name}", says, (*GENERATE, "--backbone", "self-forcing", "--no-rag"), make)

    needed = {
        "patch_embedding.weight": [8, 4, 1, 2, 2],
        "head.head.weight": [16, 8],
        "text_embedding.0.weight": [8, 8],
        "time_embedding.0.weight": [8, 8],
        "blocks.0.ffn.0.weight": [8, 8],
    }

    def model(**shapes: list[int]) -> dict[str, object]:
        header, start = {}, 0
        for name, shape in {**needed, **{name.replace("__", "."): shape for name, shape in shapes.items()}}.items():
            size = 4
            for side in shape:
                size *= side
            header[name] = tensor(start, start + size, shape)
            start += size
        return header

    def whole(name: str, says: str, shapes: dict[str, list[int]], **files: str) -> Attack:
        header = model(**shapes)
        size = max(entry["data_offsets"][1] for entry in header.values())  # type: ignore[index]
        return checkpoint(name, says, header, b"\0" * size, **files)

    return [
        checkpoint("nothing", "lacks", {}),
        checkpoint("cut off", "beyond the end", model()),
        whole("10^9 layers", "layers", {"blocks__1000000000__x": [1]}),
        whole("999999 layers", "layers", {"blocks__999999__x": [1]}),
        whole("a layer of text", "layers", {"blocks__x__y": [1]}),
        whole("a flat patch", "patch_embedding", {"patch_embedding__weight": [8]}),
        whole("an empty patch", "patch_embedding", {"patch_embedding__weight": [0, 0, 1, 2, 2]}),
        whole("a head of one axis", "head", {"head__head__weight": [8]}),
        whole("heads of text", "num_attention_heads", {}, transformer__config_json='{"num_attention_heads": "12"}'),
        whole(
            "heads of 10^9", "num_attention_heads", {}, transformer__config_json='{"num_attention_heads": 1000000000}'
        ),
        whole("a configuration of a list", "JSON", {}, transformer__config_json="[]"),
        whole("a configuration nested deep", "nested", {}, transformer__config_json=nested(100_000)),
        whole(
            "shards outside of their folder",
            "shard",
            {},
            text_encoder__x="",
            tokenizer__x="",
            vae__x="",
            **{"text_encoder__model.safetensors.index_json": '{"weight_map": {"a": "../../../../etc/passwd"}}'},
        ),
        whole(
            "shards of a list",
            "shard",
            {},
            text_encoder__x="",
            tokenizer__x="",
            vae__x="",
            **{"text_encoder__model.safetensors.index_json": '{"weight_map": ["a"]}'},
        ),
    ]


def _others() -> list[Attack]:
    def golden(name: str, content: str) -> Attack:
        def make(folder: Path) -> None:
            (folder / "g").mkdir()
            (folder / "g/case.json").write_text(content)

        return Attack(f"golden: {name}", "", ("verify", "g"), make)

    def training(name: str, make_state: object, metrics: str = "") -> Attack:
        def make(folder: Path) -> None:
            (folder / "l").mkdir()
            (folder / "e.training").mkdir()
            data = safetensors({"latents": tensor(0, 9 * 2048, [9, 8, 8, 8])}, b"\0" * (9 * 2048))
            for number in range(2):
                (folder / f"l/latent_{number:06d}.safetensors").write_bytes(data)
            make_state(folder / "e.training")  # type: ignore[operator]
            (folder / "e.training/metrics.jsonl").write_text(metrics)

        command = ("train-encoder", "--latents", "l", "--out", "e.safetensors", "--epochs", "1", "--resume")
        return Attack(f"training: {name}", "", command, make, writes=r"e\.training.*")

    state = {"model": {}, "optimizer": {}, "epoch": 1, "settings": []}
    return [
        golden("a list", "[]"),
        golden("nested deep", nested(100_000)),
        golden("tensors of a list", '{"tensors": ["noise"], "config": 1}'),
        golden("a number of tensors", '{"num_tensors": "x"}'),
        golden("a kind of a list", '{"kind": []}'),
        golden("an empty generation", '{"config": {}, "tensors": {"latents": 1}}'),
        golden("a checksum", '{"checksum": 1, "files": 1}'),
        training("noise", text("last.pt", b"PK\x03\x04")),
        training("a list", pickled("last.pt", [1])),
        training("settings of a list", pickled("last.pt", state)),
        Attack(
            "scene: a text with infinite seconds",
            "",
            ("generate", "--scene", "s.txt", "--out", "o"),
            text("s.txt", "a fox[1e400s] | a lake[8s#]"),
        ),
        Attack(
            "scene: a text with long seconds",
            "",
            ("generate", "--scene", "s.txt", "--out", "o"),
            text("s.txt", f"a fox[{'9' * 5000}s]"),
        ),
        Attack("scene: JSON of numbers", "", ("generate", "--scene", "s.json", "--out", "o"), text("s.json", "7")),
        Attack(
            "scene: prompts of numbers",
            "",
            ("generate", "--scene", "s.jsonl", "--out", "o"),
            text("s.jsonl", '{"prompts": [1, 2]}'),
        ),
        Attack(
            "scene: a story of numbers",
            "",
            ("generate", "--scene", "s.json", "--out", "o"),
            text("s.json", '{"scenes": [1]}'),
        ),
        Attack(
            "scene: 100000 shots",
            "",
            ("generate", "--scene", "s.yaml", "--out", "o"),
            text("s.yaml", "shots:\n" + "- {prompt: a, seconds: 1}\n" * 20_000),
        ),
        Attack(
            "scene: yes as seconds",
            "",
            ("generate", "--scene", "s.yaml", "--out", "o"),
            text("s.yaml", "shots:\n- {prompt: a, seconds: yes}\n"),
        ),
        Attack("scene: a shot of 10^6 characters", "", (*GENERATE, "--then", "8s: " + "a" * 100_000)),
        Attack("scene: a shot of 5000 digits", "", (*GENERATE, "--then", "9" * 5000 + "s: a")),
        Attack("scene: a reference that is no text", "", (*GENERATE, "--reference", "a")),
        Attack(
            "scene: a picture that is a video", "", (*GENERATE, "--reference", "a=p.png"), _tiny_video_named("p.png")
        ),
        Attack(
            "reference: a run with a header of noise",
            "",
            (*GENERATE, "--reference", "a=run"),
            RUNS.copied(text("latents.safetensors", bytes(range(256)) * 99)),
        ),
        Attack(
            "reference: a run with integers",
            "",
            (*GENERATE, "--reference", "a=run"),
            RUNS.copied(
                text(
                    "latents.safetensors",
                    safetensors({"latents": tensor(0, 5 * 4096, [5, 8, 8, 8], "I64")}, b"\0" * 5 * 4096),
                )
            ),
            writes="out.*",
        ),
        Attack(
            "reference: a run with NaN",
            "",
            (*GENERATE, "--reference", "a=run"),
            RUNS.copied(
                text(
                    "latents.safetensors",
                    safetensors({"latents": tensor(0, 5 * 2048, [5, 8, 8, 8])}, b"\xff" * 5 * 2048),
                )
            ),
            writes="out.*",
        ),
        Attack(
            "reference: a run with one axis",
            "",
            (*GENERATE, "--reference", "a=run"),
            RUNS.copied(text("latents.safetensors", safetensors({"latents": tensor(0, 4, [1])}, b"\0" * 4))),
        ),
        Attack("storyboard: noise", "", ("storyboard", "s.yaml"), text("s.yaml", bytes(range(256)))),
        Attack(
            "training preset: layers of 100000",
            "",
            ("train-encoder", "--latents", "l", "--out", "e.safetensors", "--set", "hidden_dims=[100000]"),
        ),
        Attack("evaluate: 10^9 videos", "", ("evaluate-encoder", "--videos", "1000000000")),
        Attack(
            "encoder evaluated: empty",
            "",
            ("evaluate-encoder", "e.safetensors", "--videos", "1", "--seconds", "10"),
            text("e.safetensors", b""),
        ),
    ]


def _tiny_video_named(name: str) -> Make:
    def make(folder: Path) -> None:
        _tiny_video(folder)
        (folder / "v.mp4").rename(folder / name)

    return make


def _tiny_video(folder: Path) -> None:
    from llrag_cli.runs.video import VideoWriter

    writer = VideoWriter(folder / "v.mp4", fps=8)
    writer.write(torch.zeros(40, 3, 2, 2))
    writer.close()


def _results() -> list[Attack]:
    """Folders of results that hold a link, or files of someone else: refused before any work."""
    scene = (
        "shots: [{name: a, prompt: a red circle, seconds: 1}, "
        "{name: b, prompt: a shape, seconds: 1, cut: true, remember: [a]}]"
    )

    def linked(file: str, *command: str) -> Attack:
        def make(folder: Path) -> None:
            (folder / "s.yaml").write_text(scene)
            (folder / "outside.txt").write_text("as it was")
            (folder / "o").mkdir()
            (folder / "o" / file).symlink_to(folder / "outside.txt")

        return Attack(
            f"results: {file} of {command[0]} is a link", "is a symbolic link", (*command, "--out", "o"), make
        )

    def blocked(path: str, says: str, *command: str, make: Make = lambda folder: None) -> Attack:
        """A folder in place of a file, or, if the path ends in `.txt`, a file in place of a folder."""

        def filled(folder: Path) -> None:
            make(folder)
            (folder / "s.yaml").write_text(scene)
            place = folder / path.removesuffix(".txt")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            if path.endswith(".txt"):
                place.write_text("as it was")
            else:
                place.mkdir()

        return Attack(f"results: {path} is in the way of {command[0]}", says, command, filled, writes=CREATED)

    def latents(folder: Path) -> None:
        (folder / "l").mkdir()
        content = safetensors({"latents": tensor(0, 9 * 512 * 4, [9, 8, 8, 8])}, b"\0" * (9 * 512 * 4))
        for number in range(2):
            (folder / f"l/latent_{number:06d}.safetensors").write_bytes(content)

    def prompts(folder: Path) -> None:
        (folder / "p.txt").write_text("a red circle\n")

    train = ("train-encoder", "--latents", "l", "--out", "e.safetensors", "--epochs", "1")
    takes = ("generate", "a red circle", "--takes", "2", "--seconds", "1", "--out", "o")
    is_folder = "is a folder, not a file"

    def taken(*command: str) -> Attack:
        def make(folder: Path) -> None:
            (folder / "s.yaml").write_text(scene)
            (folder / "o").mkdir()
            (folder / "o/mine.txt").write_text("as it was")

        return Attack(f"results: a folder for {' '.join(command)}", "is not empty", (*command, "--out", "o"), make)

    studies = (("bench", "returning"), ("bench", "leave-and-return"))
    return [
        *(linked(file, "demo", "--scene", "s.yaml") for file in ("demo.html", "demo.png")),
        *(linked(file, "storyboard", "s.yaml") for file in ("storyboard.html", "storyboard.png")),
        *(linked(file, "generate", "a red circle", "--takes", "2") for file in ("takes.html", "takes.png")),
        *(linked(file, "bench", "--count", "1") for file in ("results.json", "report.html")),
        *(linked(file, *studies[0]) for file in ("results.csv", "sheet.png", "rows.jsonl", "pictures")),
        *(taken(*command) for command in (*studies, ("demo",))),
        blocked("run/memory.html", is_folder, *INSPECT, make=RUNS.copied()),
        blocked("run/video.mp4", is_folder, "decode", "run", make=RUNS.copied()),
        blocked("o/demo.html", is_folder, "demo", "--out", "o"),
        blocked("o/storyboard.png", is_folder, "storyboard", "s.yaml", "--out", "o"),
        blocked("o/takes.html", is_folder, *takes),
        blocked("o/take-2.txt", "cannot be written: not a directory", *takes),
        blocked("o/report.html", is_folder, "bench", "--out", "o", "--count", "1"),
        blocked("o/rows.jsonl", is_folder, *studies[0], "--out", "o"),
        blocked("c/latent_000000.safetensors", is_folder, *COLLECT, make=prompts),
        blocked("o/encoders.png", is_folder, "evaluate-encoder", "--out", "o", "--latents", "l", make=latents),
        blocked("o.txt", "cannot be written: not a directory", "evaluate-encoder", "--out", "o"),
        blocked("e.training/curves.png", is_folder, *train, make=latents),
        blocked("e.training.txt", "cannot be written: not a directory", *train, make=latents),
        Attack(
            "results: damaged metrics of a training",
            "metrics.jsonl` is damaged",
            (*train, "--resume"),
            lambda folder: (
                latents(folder),
                (folder / "e.training").mkdir(),
                (folder / "e.training/metrics.jsonl").write_text(nested(100_000)),
            ),
        ),
        Attack(
            "results: other takes",
            "was started with other settings: `prompt`",
            ("generate", "a blue square", "--takes", "2", "--seconds", "6", "--out", "o"),
            lambda folder: (
                (folder / "o").mkdir(),
                RUNS.copied()(folder),
                (folder / "run").rename(folder / "o/take-2"),
            ),
        ),
        Attack(
            "results: other prompts",
            "was started with other settings: `memory.guard`",
            ("generate", "--prompts", "p.txt", "--seconds", "6", "--out", "o"),
            lambda folder: (
                prompts(folder),
                (folder / "o").mkdir(),
                RUNS.copied()(folder),
                (folder / "run").rename(folder / "o/001-a-red-circle"),
            ),
        ),
        Attack(
            "results: a prompt of nothing in collect",
            "`tiny` understands nothing of `zebra`",
            COLLECT,
            text("p.txt", "zebra\n"),
        ),
        Attack(
            "results: one folder is no ranking",
            "all videos are in one folder",
            ("bench", "score", "--rank-folders", "run"),
            RUNS.copied(),
        ),
    ]


def _servers() -> list[Attack]:
    def serve(name: str, says: str, *options: str) -> Attack:
        return Attack(f"serve: {name}", says, ("serve", "--port", "0", *options), text("file", "as it was"))

    return [
        serve("runs in a file", "`file` cannot be written", "--runs", "file"),
        serve("a name that is too long", "is no address of this machine", "--host", "x" * 300),
        serve("a name without letters", "is no address of this machine", "--host", "a..b"),
        serve("a file as a token", "shorter than 8", "--token", "x"),
        serve("a preset outside", "no such file", "--backbone", "../x.yaml"),
    ]


def _scenes_of_others() -> list[Attack]:
    def scene(name: str, says: str, content: str, file: str = "s.json") -> Attack:
        return Attack(f"scene: {name}", says, ("scene", "check", file), text(file, content))

    return [
        scene(
            "frames of 400 digits", "must rise", f'{{"prompts": ["a red circle"], "num_output_frames": 1{"0" * 400}}}'
        ),
        scene("frames of 400 digits below 0", "must rise", f'{{"prompts": ["a"], "num_output_frames": -1{"0" * 400}}}'),
        scene("nested deep", "nested too deep", nested(100_000)),
        scene("20000 lines", "more than 10000", '{"prompts": ["a red circle"]}\n' * 20_000, "s.jsonl"),
        scene("half a character", "no character", '{"prompts": ["\\ud800"]}'),
    ]


ATTACKS = [
    *_encoders(), *_records(), *_logs(), *_other_records(), *_settings(), *_presets(), *_pictures(), *_arguments(),
    *_checkpoints(), *_others(), *_results(), *_servers(), *_scenes_of_others(),
]  # fmt: skip
