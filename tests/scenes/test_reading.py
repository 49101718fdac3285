"""Scene files: what they hold, and the sentence for each thing that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llrag_cli.errors import UsageError
from llrag_cli.files.yaml_lines import parse_yaml
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.presets import load_config
from llrag_cli.scenes.example import example_scene
from llrag_cli.scenes.reading import parse_then, read_scene, scene_from_prompts, scene_from_text
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import plan_timeline

ONE = "shots:\n- {prompt: a fox, seconds: 1}\n"


def error_of(path: Path) -> tuple[str, str]:
    with pytest.raises(UsageError) as raised:
        read_scene(path)
    return raised.value.problem, raised.value.hint


def outcome(path: Path) -> tuple[Scene] | tuple[str, str]:
    try:
        return (read_scene(path),)
    except UsageError as error:
        return error.problem, error.hint


def written(folder: Path, text: str, name: str = "scene.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_example_runs_on_the_embedded_model(tmp_path: Path) -> None:
    scene = read_scene(written(tmp_path, example_scene()))
    timeline = plan_timeline(scene, load_config("tiny"))
    assert [shot.kind for shot in timeline.shots] == ["start", "switch", "cut", "cut"]
    assert timeline.eligible(timeline.shots[3].start) == ("arrival", "return")
    for index in range(4):
        ids, unknown = tokenize(scene.prompt(index), limit=24)
        assert ids and not unknown


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scenes/pictures").mkdir(parents=True)
    (tmp_path / "scenes/pictures/mara.png").touch()
    (tmp_path / "runs/house").mkdir(parents=True)
    (tmp_path / "scenes/mine.yaml").touch()
    text = (
        "backbone: mine.yaml\nimage: pictures/mara.png\nreferences: {mara: pictures/mara.png, house: ../runs/house}\n"
    )
    written(tmp_path / "scenes", text + ONE)
    monkeypatch.chdir(tmp_path)
    scene = read_scene("scenes/scene.yaml")
    assert scene.references["mara"].path == scene.image == tmp_path / "scenes/pictures/mara.png"
    assert scene.references["house"].path.samefile(tmp_path / "runs/house")
    assert scene.backbone == str(tmp_path / "scenes/mine.yaml")


NEEDS_SHOT = "write `shots:`, each with `prompt` and `seconds`"
SECONDS = "`seconds`: length in seconds, rounded to whole blocks"


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", "`scene.yaml` is empty", "write at least one key"),
        ("a fox", "`scene.yaml`: not a scene", "a scene file has `shots:`, each with `prompt` and `seconds`"),
        ("title: x\nshots: []\n", "`scene.yaml`, line 2: a scene needs at least one shot", NEEDS_SHOT),
        ("shots:\n", "`scene.yaml`, line 1: a scene needs at least one shot", NEEDS_SHOT),
        ("shots: 3\n", "`scene.yaml`, line 1: `shots` must be a list, not `3`", "`shots`: the shots, in order"),
        ("shots: [a, b\n", "`scene.yaml`, line 2: not valid YAML", ""),
        ("titel: x\n" + ONE, "`scene.yaml`, line 1: unknown key `titel`", "did you mean `title`?"),
        ("title: 3\n" + ONE, "`scene.yaml`, line 1: `title` must be text, not `3`", "put it in quotes"),
        ("seed: -1\n" + ONE, "`scene.yaml`, line 1: `seed` must be at least 0, not `-1`", ""),
        ("takes: 0\n" + ONE, "`scene.yaml`, line 1: `takes` must be at least 1, not `0`", ""),
        ("set: 3\n" + ONE, "`scene.yaml`, line 1: `set` must be a mapping of keys to values, not `3`", ""),
        ("set: {a: {b: 1}, a.b: 2}\n" + ONE, "`scene.yaml`, line 1: the setting `a.b` is given twice", ""),
        ("1: 2\n" + ONE, "`scene.yaml`, line 1: a key must be text, not `1`", "put the key in quotes"),
        (ONE + "shots: []", "`scene.yaml`, line 3: the key `shots` is given twice", "keep one of them"),
        ("references: {m: 3}\n" + ONE, "`scene.yaml`, line 1, reference `m`: a reference must be a mapping", ""),
        ("references: {m: {}}\n" + ONE, "`scene.yaml`, line 1, reference `m`: `path` is missing", ""),
        ("references: {m: ''}\n" + ONE, "`scene.yaml`, line 1, reference `m`: a path must be text", ""),
        (
            "references:\n  m: m.png\n" + ONE,
            "`scene.yaml`, line 2, reference `m`: `m.png` does not exist",
            "paths start",
        ),
        ("references: {all: a}\n" + ONE, "`scene.yaml`, line 1, reference `all`: `all` is reserved", ""),
        ("image: a.png\n" + ONE, "`scene.yaml`, line 1: `a.png` does not exist", "paths start"),
        ("backbone: my.yaml\n" + ONE, "`scene.yaml`, line 1: `my.yaml` does not exist", "paths start"),
    ],
)
def test_sentences_of_a_scene(tmp_path: Path, text: str, problem: str, hint: str) -> None:
    found = error_of(written(tmp_path, text))
    assert found[0].startswith(problem) and found[1].startswith(hint) and found[1]


@pytest.mark.parametrize(
    ("second", "problem", "hint"),
    [
        ("- a fox", "a shot must be a mapping of keys to values", "its keys are `name`, `prompt`, `seconds`"),
        ("- {seconds: 1}", "`prompt` is missing", "`prompt`: what the shot shows"),
        ("- {prompt: ' ', seconds: 1}", "the prompt is empty", "describe what the shot shows"),
        ("- {prompt: no, seconds: 1}", "`prompt` must be text, not `false`", "put it in quotes"),
        ("- {prompt: a}", "`seconds` is missing", SECONDS),
        ("- {prompt: a, seconds: 0}", "`seconds` must be more than 0, not `0`", SECONDS),
        ("- {prompt: a, seconds: -2}", "`seconds` must be more than 0, not `-2`", SECONDS),
        ("- {prompt: a, seconds: 8s}", "`seconds` must be a number, not `8s`", SECONDS),
        ("- {prompt: a, seconds: .nan}", "`seconds` must be a finite number, not `nan`", SECONDS),
        ("- {prompt: a, seconds: 1e9}", "`seconds` must be a number, not `1e9`", SECONDS),  # text in YAML 1.1
        ("- {prompt: a, seconds: 1000000}", "`seconds` must be at most 86400, not `1000000`", SECONDS),
        ("- {prompt: a, seconds: 1, cut: 3}", "`cut` must be `true` or `false`, not `3`", "`cut`: start a new picture"),
        ("- {prompt: a, seconds: 1, cutt: 3}", "unknown key `cutt`", "did you mean `cut`?"),
        (f"- {{prompt: a, seconds: 1, {'k' * 90}: 3}}", f"unknown key `{'k' * 80}`", "one of `cut`, `image`"),
        ("- {prompt: a, seconds: 1, name: 12}", "`name` must be text, not `12`", "put it in quotes"),
        ("- {prompt: a, seconds: 1, name: a/b}", "`a/b` cannot be a name", "a name has up to 64 letters"),
        ("- {prompt: a, seconds: 1, name: none}", "`none` is reserved: it is a choice of `remember`", "choose another"),
        (
            "- {prompt: a, seconds: 1, name: shot-1}",
            "the name `shot-1` is used twice: shot 1 has it too",
            "choose another",
        ),
        ("- {prompt: a, seconds: 1, name: shot-3}", "`shot-3` is the automatic name of shot 3", "choose another name"),
        ("- {prompt: a, seconds: 1, remember: some}", "`remember` must be `all`, `none` or a list", "for example"),
        ("- {prompt: a, seconds: 1, remember: []}", "`remember` is an empty list", "write `none`"),
        (
            "- {prompt: a, seconds: 1, remember: [shot-11]}",
            "`remember` names `shot-11`, which is neither a shot nor a reference",
            "did you mean `shot-1`?",
        ),
        (
            "- {prompt: a, seconds: 1, remember: [end]}",
            "`end` cannot be remembered: it is shot 3, which comes later",
            "name earlier shots",
        ),
        ("- {prompt: a, seconds: 1, sink: drop}", "`sink` applies to a cut, but this shot is a switch", "remove it"),
        (
            "- {prompt: a, seconds: 1, sink: x, cut: true}",
            "`sink` must be `keep` or `drop`, not `x`",
            "`sink`: at a cut",
        ),
        (
            "- {prompt: a, seconds: 1, recache: none, cut: true}",
            "`recache` applies to a switch, but this shot is a cut",
            "a cut drops the window; remove it",
        ),
        (
            "- {prompt: a, seconds: 1, image: a.png}",
            "`image` opens a new picture, but this shot continues the one before",
            "add `cut: true`",
        ),
        (
            "- {prompt: a, seconds: 1, cut: true, image: a.png, video: b.mp4}",
            "`image` and `video` both open the shot",
            "give one of them",
        ),
        ("- {prompt: a, seconds: 1, cut: true, video: b.mp4}", "`b.mp4` does not exist", "paths start at the folder"),
    ],
)
def test_sentences_of_a_shot(tmp_path: Path, second: str, problem: str, hint: str) -> None:
    text = f"# a comment\nshots:\n- prompt: a\n  seconds: 1\n{second}\n- {{prompt: z, seconds: 1, name: end}}\n"
    found = error_of(written(tmp_path, text))
    assert found[0].startswith(f"`scene.yaml`, line 5, shot 2: {problem}")
    assert found[1].startswith(hint)


def test_the_line_is_that_of_the_key(tmp_path: Path) -> None:
    path = written(tmp_path, "shots:\n- prompt: a\n  seconds: 1\n- prompt: >\n    a fox\n    runs\n  seconds: x\n")
    assert error_of(path)[0] == "`scene.yaml`, line 7, shot 2: `seconds` must be a number, not `x`"


def test_a_scene_may_be_json(tmp_path: Path) -> None:
    assert read_scene(written(tmp_path, '{"shots": [{"prompt": "a", "seconds": 2}]}', "scene.json")).seconds == 2
    path = written(tmp_path, '{\n\t"shots": [\n\t\t{"prompt": "a", "seconds": 0}]}', "scene.json")
    assert error_of(path)[0] == "`scene.json`, line 3, shot 1: `seconds` must be more than 0, not `0`"


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = "shots:\n- &a {prompt: a, seconds: 2}\n- *a\n- <<: *a\n  prompt: b\n"
    assert [shot.prompt for shot in read_scene(written(tmp_path, text)).shots] == ["a", "a", "b"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert error_of(tmp_path / "x.yaml")[0] == f"scene file `{tmp_path / 'x.yaml'}` does not exist"
    assert error_of(tmp_path)[0] == f"`{tmp_path}` is a folder, not a scene file"
    assert error_of(Path("/dev/zero"))[0] == "`/dev/zero` is not a regular file"
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"title: caf\xe9")
    assert error_of(path)[0] == f"`{path}` is not UTF-8 text"


def test_the_text_of_a_scene_is_read_without_a_file() -> None:
    assert scene_from_text(ONE) == Scene.model_validate({"shots": [{"prompt": "a fox", "seconds": 1}]})
    for text in ("a fox", "- a fox", "7"):
        with pytest.raises(UsageError, match="`scene`: not a scene"):
            scene_from_text(text)


def test_a_misspelt_key_is_named_rather_than_what_it_leaves_missing(tmp_path: Path) -> None:
    problem, hint = error_of(written(tmp_path, "shots:\n- {promt: a fox, seconds: 1}\n"))
    assert problem.endswith("unknown key `promt`") and "`prompt`" in hint
    problem, _ = error_of(written(tmp_path, "shots:\n- {prompt: a fox, seconds: x, colour: 1}\n"))
    assert "`seconds` must be a number" in problem  # both are wrong, and it comes first


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "`scene.yaml`, line 1: aliases expand to too many values"),
        (MERGES, "`scene.yaml`, line 1: aliases expand to too many values"),
        ("a: &a [*a]", "`scene.yaml`, line 1: aliases expand to too many values"),
        ("&a\n<<: *a\n", "`scene.yaml`: an alias contains itself"),
        ("- " * 400_000, "`scene.yaml`, line 1: nested more than 24 levels deep"),
        ("? " * 400_000, "`scene.yaml`, line 1: nested more than 24 levels deep"),
        ("".join(" " * n + "-\n" for n in range(900)), "`scene.yaml`, line 25: nested more than 24 levels deep"),
        ("[" * 900_000, "`scene.yaml`, line 1: "),  # whose limit comes first depends on the parser
        ("[" + "a," * 400_000 + "]", "`scene.yaml`, line 1: too many values"),
        ("shots:\n" + "- {prompt: a, seconds: 1}\n" * 1001, "`scene.yaml`, line 1: `shots` has more than 1000 entries"),
        (
            f"shots:\n- {{seconds: 1, prompt: {'a ' * 20_000}}}",
            "`scene.yaml`, line 2, shot 1: `prompt` has more than 20000",
        ),
        ("seed: " + "9" * 90_000, "`scene.yaml` holds a number or date that cannot be read"),
        ("title: 2020-13-45", "`scene.yaml` holds a number or date that cannot be read"),
        ("title: !!python/object:os.system x", "`scene.yaml`, line 1: not valid YAML"),
        ("title: \0", "`scene.yaml`: not valid YAML: control characters are not allowed"),
        ("title: a\n---\ntitle: b\n", "`scene.yaml`, line 2: not valid YAML: but found another document"),
        ("? [a]\n: 1\n", "`scene.yaml`, line 1: a key must be text, not a list or mapping"),
    ],
)
def test_hostile_yaml_ends_in_a_sentence(tmp_path: Path, text: str, problem: str) -> None:
    found = error_of(written(tmp_path, text))
    assert found[0].startswith(problem) and found[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 900_000, "`scene.json`, line 1: nested too deep"),
        ('\n{"a": }', "`scene.json`, line 2: not valid JSON: expecting value"),
        ('{"seed": ' + "9" * 5000 + "}", "`scene.json`, line 1: a number is too long"),
        ('{"shots": [{"prompt": "\\ud800", "seconds": 1}]}', "`scene.json`, line 1: an escape is no character"),
        ("1\n" * 400_000, "`scene.json`: it holds more than 10000 JSON values"),
        (" ", "`scene.json` is empty"),
        ("3", "`scene.json`: not a scene"),
    ],
)
def test_hostile_json_ends_in_a_sentence(tmp_path: Path, text: str, problem: str) -> None:
    found = error_of(written(tmp_path, text, "scene.json"))
    assert found[0].startswith(problem) and found[1]


def test_large_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a" * 5_000_000)
    assert error_of(path)[0] == f"`{path}` is larger than 1 MB"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_damaged_scenes_end_in_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(example_scene().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=6))
    path = tmp_path / "scene.yaml"
    path.write_bytes(content)
    assert all(outcome(path))


def test_lines_of_lists_and_mappings() -> None:
    document = parse_yaml("a:\n- b\n- c: 1\n  d: [2,\n   3]\n", name="x")
    assert document.content == {"a": ["b", {"c": 1, "d": [2, 3]}]}
    assert [document.line(at) for at in [("a",), ("a", 0), ("a", 1, "d"), ("a", 1, "d", 1)]] == [1, 2, 4, 5]
    assert document.line(("a", 1, "d", "missing")) == 4 and document.line(()) is None and document.line(("z",)) is None


def test_the_short_form() -> None:
    stops = parse_then("8s: it stops: and looks up")
    assert (stops.seconds, stops.prompt, stops.cut) == (8, "it stops: and looks up", False)
    lake = parse_then(" cut 6.5 sec : a frozen lake ")
    assert (lake.seconds, lake.prompt, lake.cut) == (6.5, "a frozen lake", True)
    scene = scene_from_prompts("a fox runs", 8, ["8s: it stops", "cut 6s: a lake"])
    assert [(shot.prompt, shot.seconds, shot.cut) for shot in scene.shots] == [
        ("a fox runs", 8, False),
        ("it stops", 8, False),
        ("a lake", 6, True),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("it stops", "`it stops` is not `SECONDS: PROMPT`"),
        ("cut: a lake", "`cut: a lake` is not `SECONDS: PROMPT`"),
        ("cut6s a lake", "`cut6s a lake` is not `SECONDS: PROMPT`"),
        ("8s:", "`8s:`: the prompt is empty"),
        ("0s: a", "`0s: a`: `seconds` must be more than 0, not `0.0`"),
        ("1.2.3s: a", "`1.2.3` is not a number of seconds"),
    ],
)
def test_sentences_of_the_short_form(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_then(text)
    assert raised.value.problem == problem and raised.value.hint


def test_sentences_of_the_first_prompt() -> None:
    with pytest.raises(UsageError, match="the first shot: the prompt is empty"):
        scene_from_prompts(" ", 8)
    with pytest.raises(UsageError, match="the first shot: `seconds` must be more than 0"):
        scene_from_prompts("a fox", 0)


def test_json_escapes(tmp_path: Path) -> None:
    content = json.dumps({"shots": [{"prompt": "a 🦊", "seconds": 1}]})
    assert read_scene(written(tmp_path, content, "scene.json")).shots[0].prompt == "a 🦊"
