"""What clients may ask for, and how what is wrong is answered. No worker runs: what is accepted waits."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llrag_cli.serve.settings import Limits
from serve.serving import MODEL, OTHER, PROMPT, Unserved

SCENE = f"shots:\n- prompt: {PROMPT}\n  seconds: 3\n- prompt: {OTHER}\n  seconds: 3\n  cut: true\n"


@pytest.fixture
def server(tmp_path: Path) -> Unserved:
    return Unserved(tmp_path / "runs", limits=Limits(queue=6, seconds=60, takes=4))


WRONG: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({}, 400, "prompt", "a prompt is missing"),
    ({"prompt": "  "}, 400, "prompt", "the prompt is empty"),
    ({"prompt": PROMPT, "scene": SCENE}, 400, "prompt", "give a prompt or a scene, not both"),
    ({"prompt": "xyzzy"}, 400, None, f"`{MODEL}` understands nothing of `xyzzy`"),
    ({"prompt": "a red circle\0"}, 400, None, "the body is not valid: a text has a null character"),
    ({"prompt": 3}, 400, "prompt", "`prompt`: input should be a valid string"),
    ({"prompt": PROMPT, "model": "sora-2"}, 404, "model", "unknown model `sora-2`"),
    ({"prompt": PROMPT, "model": "../tiny.yaml"}, 404, "model", "unknown model `../tiny.yaml`"),
    ({"prompt": PROMPT, "size": "1x1"}, 400, "size", f"`{MODEL}` has no pictures of 1x1 pixels"),
    ({"prompt": PROMPT, "size": "99999x99999"}, 400, "size", "`99999x99999` is too large"),
    ({"prompt": PROMPT, "size": "big"}, 400, "size", "`big` is not a size"),
    ({"prompt": PROMPT, "seconds": "-1"}, 400, "seconds", "a video cannot last -1 seconds"),
    ({"prompt": PROMPT, "seconds": True}, 400, "seconds", "`seconds`: input should be a valid number"),
    ({"prompt": PROMPT, "compare": 1}, 400, "compare", "`compare`: input should be a valid boolean"),
    ({"prompt": PROMPT, "seconds": "nan"}, 400, "seconds", "`seconds`: input should be a finite number"),
    ({"prompt": PROMPT, "seconds": "61"}, 400, "seconds", "61 s are longer than the 60 s that are allowed"),
    ({"prompt": PROMPT, "seed": -1}, 400, "seed", "`seed`: input should be greater than or equal to 0"),
    ({"prompt": PROMPT, "memory": "nearst"}, 400, "memory", "unknown memory strategy `nearst`"),
    ({"prompt": PROMPT, "takes": 5}, 400, "takes", "5 takes are more than the 4 that are allowed"),
    ({"prompt": PROMPT, "decoder": "tiny"}, 400, None, "`video.decoder` is `tiny`, but the embedded model has one"),
    ({"prompt": PROMPT, "colour": "x"}, 400, "colour", "unknown field `colour`"),
    ({"prompt": PROMPT, "references": ["/etc/passwd"]}, 404, "references", "no character or video `/etc/passwd`"),
    ({"prompt": PROMPT, "references": "nope, other"}, 404, "references", "no character or video `nope`"),
    ({"prompt": PROMPT, "seconds": 2, "compare": True}, 400, None, "no shot of the scene can retrieve anything"),
    ({"scene": "shots: ["}, 400, "scene", "`scene`"),
    ({"scene": SCENE + "references:\n  a: /etc/passwd\n"}, 404, "references", "no character or video `/etc/passwd`"),
    ({"scene": SCENE + "image: ../../secret.png\n"}, 404, "references", "no character or video `../../secret.png`"),
    ({"scene": SCENE + "backbone: /tmp/own.yaml\n"}, 404, "model", "unknown model `/tmp/own.yaml`"),
    ({"scene": SCENE + "set:\n  memory.encoder: /etc/passwd\n"}, 400, "scene", "`memory.encoder` cannot be changed"),
    ({"scene": SCENE + "set:\n  memory.rule: this:x\n"}, 400, "scene", "a scene cannot choose a memory rule"),
    ({"scene": SCENE + "memory: this:x\n"}, 400, "scene", "a scene cannot choose a memory rule"),
    ({"prompt": PROMPT, "memory": "this:x"}, 400, "memory", "unknown memory strategy `this:x`"),
    ({"prompt": PROMPT, "memory": "own"}, 400, "memory", "unknown memory strategy `own`"),
    ({"scene": SCENE + "set:\n  backbone.weights: x\n"}, 400, "scene", "`backbone.weights` cannot be changed"),
    ({"scene": SCENE.replace("cut", "cutt")}, 400, "scene", "`scene`, line 6, shot 2: unknown key `cutt`"),
]


@pytest.mark.parametrize(("fields", "status", "param", "said"), WRONG)
def test_wrong_requests_are_refused_in_one_sentence(
    server: Unserved, fields: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    answer = server.post("/v1/videos", fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert said in error["message"] and error["type"] == "invalid_request_error" and error["code"]
    assert server.get("/v1/videos").json()["data"] == []
    assert not [path for path in server.settings.runs.iterdir() if path.is_dir()]


def test_bodies_that_cannot_be_read(server: Unserved) -> None:
    def post(content: bytes, kind: str) -> tuple[int, str]:
        answer = server.request("POST", "/v1/videos", content=content, headers={"content-type": kind})
        return answer.status_code, answer.json()["error"]["message"]

    assert post(b"{", "application/json")[0] == 400
    assert post(b"[1]", "application/json") == (400, "the body is not a JSON object")
    assert "nested too deep" in post(b'{"prompt":' * 100 + b"1" + b"}" * 100, "application/json")[1]
    assert "given twice" in post(b'{"prompt": "a", "prompt": "b"}', "application/json")[1]
    assert post(b"x", "text/plain") == (415, "`text/plain` is not read")
    assert post(b"x", "multipart/form-data; boundary=a")[0] == 400
    assert post(b"x", "multipart/form-data")[0] == 400
    form = "application/x-www-form-urlencoded"
    for content in (
        b"prompt=x&prompt[a]=1",
        b"prompt[a]=1&prompt[]=2",
        b"prompt[]=1&prompt[a]=2",
        b"prompt[a]=1&prompt=x",
    ):
        assert post(content, form) == (400, "the field `prompt` is given in two ways")
    assert post(b"references=a&references[]=b&prompt=" + PROMPT.encode(), form) == (404, "no character or video `a`")


def test_headers_that_are_no_numbers(server: Unserved) -> None:
    for length in (b"\xb2", b"9" * 5000, b"-1"):
        answer = server.request("POST", "/v1/videos", content=b"{}", headers={"content-length": length})
        assert answer.status_code == 413, length
    video = server.create()
    server.queue.cancel(server.queue.get(video["id"]))
    for last in (b"\xb2", b"9" * 5000):
        answer = server.get(f"/v1/videos/{video['id']}/events", headers={"last-event-id": last})
        assert (answer.status_code, "event: done" in answer.text) == (200, True)


def test_errors_of_the_router_have_the_same_shape(server: Unserved) -> None:
    for method, path, status in (("GET", "/nope", 404), ("PUT", "/v1/videos", 405), ("GET", "/v1/videos?limit=0", 400)):
        answer = server.request(method, path)
        assert answer.status_code == status
        assert {*answer.json()["error"]} >= {"message", "type", "param", "code"}
    assert server.get("/v1/videos?limit=0").json()["error"]["param"] == "limit"
    assert server.get("/v1/videos?order=sideways").json()["error"]["param"] == "order"


def test_a_form_and_json_say_the_same(server: Unserved) -> None:
    fields = {"prompt": PROMPT, "model": "tiny", "seconds": "3", "size": "256x256", "seed": "5", "memory": "native"}
    one = server.post("/v1/videos", fields).json()
    other = server.request("POST", "/v1/videos", files={name: (None, text) for name, text in fields.items()}).json()
    for video in (one, other):
        own = video["llrag"]
        assert (video["status"], video["model"], video["size"], video["seconds"]) == (
            "queued",
            "tiny",
            "256x256",
            "4.125",
        )
        assert (own["seed"], own["memory"], own["status"]) == (5, "none", "queued")
        assert own["shots"] == [
            {"name": "shot-1", "start": 0.0, "end": 4.125, "prompt": PROMPT, "change": "start"},
        ]
    assert [one["llrag"]["position"], other["llrag"]["position"]] == [0, 1]


def test_takes_and_comparisons_are_groups(server: Unserved) -> None:
    first = server.create(takes=2, seed=4)
    group = first["llrag"]["group"]
    videos = [server.get(f"/v1/videos/{each}").json()["llrag"] for each in group]
    assert [(own["seed"], own["take"]) for own in videos] == [(4, 1), (5, 2)]
    assert videos[0]["take_of"] == videos[1]["take_of"] is not None
    pair = server.create(compare=True, seconds="15")["llrag"]
    videos = [server.get(f"/v1/videos/{each}").json()["llrag"] for each in pair["group"]]
    assert [(own["memory"], own["seed"]) for own in videos] == [("none", 1), ("nearest", 1)]
    picked = server.post(f"/v1/llrag/groups/{first['llrag']['take_of']}/pick", {"id": group[1]}).json()
    assert picked == server.get(f"/v1/llrag/groups/{first['llrag']['take_of']}").json()
    assert (picked["kind"], picked["picked"]) == ("takes", group[1])
    assert [video["llrag"]["picked"] for video in picked["videos"]] == [False, True]
    assert server.get(f"/v1/llrag/groups/{pair['compare_of']}").json()["kind"] == "compare"
    assert server.get("/v1/llrag/groups/group_x").status_code == 404
    assert server.post("/v1/llrag/groups/group_x/pick", {"id": group[1]}).status_code == 404


def test_the_queue_has_an_end(server: Unserved) -> None:
    server.create(takes=4)
    answer = server.post("/v1/videos", {"prompt": PROMPT, "takes": 3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    server.create(takes=2)
    assert server.post("/v1/videos", {"prompt": PROMPT}).status_code == 429


def test_pages_of_the_list(server: Unserved) -> None:
    made = [server.create()["id"] for _ in range(5)]
    page = server.get("/v1/videos?limit=2&order=asc").json()
    assert ([video["id"] for video in page["data"]], page["has_more"]) == (made[:2], True)
    page = server.get(f"/v1/videos?limit=3&order=asc&after={page['last_id']}").json()
    assert ([video["id"] for video in page["data"]], page["has_more"]) == (made[2:], False)
    assert server.get("/v1/videos?limit=1").json()["first_id"] == made[-1]
    assert server.get("/v1/videos?after=nope").status_code == 404


def png(width: int = 40, height: int = 30) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_uploads_are_decoded_and_only_then_kept(server: Unserved) -> None:
    def send(content: bytes, name: str = "../../../evil.png", **fields: str) -> Any:
        data = {"prompt": PROMPT, **fields}
        return server.request("POST", "/v1/videos", files={"input_reference": (name, content)}, data=data)

    refused = send(png())
    assert "so it cannot start from one picture" in refused.json()["error"]["message"]
    for content in (b"", b"not a picture", png()[:200], b"#EXTM3U\n/etc/passwd\n"):
        answer = send(content)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + png()[24:29]
    large = send(png()[:12] + header + struct.pack(">I", zlib.crc32(header)) + png()[33:])
    assert "pixels" in large.json()["error"]["message"] and "not a video" not in large.json()["error"]["message"]
    assert not [path for path in server.settings.runs.iterdir() if path.is_dir()]
    named = server.request("POST", "/v1/videos/characters", files={"video": ("x", png())}, data={"name": "../Mara"})
    character = named.json()
    assert (character["name"], character["object"]) == ("../Mara", "character")
    assert sorted(path.name for path in (server.settings.runs / character["id"]).iterdir()) == [
        "character.json", "character.png",
    ]  # fmt: skip
    video = server.create(references=[character["id"]], seconds="12")
    assert video["llrag"]["references"] == ["reference-1"]
    assert server.get(f"/v1/videos/characters/{character['id']}").json() == character
    assert server.get(f"/v1/videos/characters/{character['id']}/picture").headers["content-type"] == "image/jpeg"
    assert server.get("/v1/llrag/library").json()["characters"] == [character]


def test_scenes_between_yaml_and_json(server: Unserved) -> None:
    text = server.get("/v1/llrag/info").json()["comparison"]["scene"]
    content = server.post("/v1/llrag/scene/parse", {"yaml": text}).json()
    assert [shot.get("cut") for shot in content["scene"]["shots"]] == [None, True, True]  # what is written, no more
    assert server.post("/v1/llrag/scene/format", content).json() == {"yaml": text}
    shots = [{"seconds": 3, "prompt": PROMPT}, {"cut": True, "prompt": "", "seconds": 2.5}]  # being written
    yaml = server.post("/v1/llrag/scene/format", {"scene": {"shots": shots, "seed": 1}}).json()["yaml"]
    assert yaml == f"seed: 1\nshots:\n- prompt: {PROMPT}\n  seconds: 3\n- prompt: ''\n  seconds: 2.5\n  cut: true\n"
    wrong = server.post("/v1/llrag/scene/parse", {"yaml": "shots:\n- prompt: a\n  secnds: 3\n"}).json()["problem"]
    assert wrong == {"message": "shot 1: unknown key `secnds`", "hint": "did you mean `seconds`?", "line": 3}


def test_an_estimate_says_what_a_video_takes_and_what_cannot_be_drawn(server: Unserved) -> None:
    known = server.post(
        "/v1/llrag/estimate", {"prompt": "a red circle and a dragon on a blue wall", "seconds": 10}
    ).json()
    assert known["fits"] and known["latent_frames"] == 21 and known["seconds"] == 10.125
    assert known["memory_bytes"] > 10**6 and known["disk_bytes"] > 10**5 and known["generation_seconds"] is None
    assert known["reading"][0]["understood"] and known["reading"][0]["ignored"] == ["dragon"]
    unknown = server.post("/v1/llrag/estimate", {"prompt": "xyzzy"}).json()
    assert not unknown["fits"] and "understands nothing" in unknown["problem"]["message"] and unknown["problem"]["hint"]


def test_videos_that_do_not_run_are_not_switched_or_extended(server: Unserved) -> None:
    identifier = server.create()["id"]
    for path, content, code in (
        (f"/v1/videos/{identifier}/switch", {"prompt": OTHER}, "not_running"),
        ("/v1/videos/extensions", {"video": identifier, "seconds": 2}, "not_finished"),
        ("/v1/videos/extensions", {"video": identifier, "seconds": 2, "seed": 4}, "invalid_value"),
        ("/v1/videos/extensions", {"seconds": 2}, "invalid_value"),
        (f"/v1/videos/{identifier}/switch", {"prompt": "xyzzy"}, "invalid_value"),
    ):
        answer = server.post(path, content)
        assert answer.status_code in (400, 409) and answer.json()["error"]["code"] == code
    assert server.get(f"/v1/videos/{identifier}/content").json()["error"]["code"] == "not_ready"
    assert server.get(f"/v1/videos/{identifier}/frames/0.jpg").status_code == 404
    assert server.get(f"/v1/videos/{identifier}/export").json()["error"]["code"] == "no_frames"


def test_a_video_is_not_extended_by_a_prompt_of_nothing(server: Unserved) -> None:
    """It would fail only once the worker reads the prompt."""
    identifier = server.create()["id"]
    answer = server.post("/v1/videos/extensions", {"video": identifier, "seconds": 2, "prompt": "zebra"})
    assert answer.status_code == 400 and "understands nothing of `zebra`" in answer.json()["error"]["message"]


def test_the_description_of_the_api_is_complete_in_itself(server: Unserved) -> None:
    content = server.get("/openapi.json").json()
    assert "multipart/form-data" in content["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    page = server.get("/docs")
    assert page.status_code == 200 and "/v1/videos/{video_id}/switch" in page.text
    assert "//" not in page.text.replace("http://127.0.0.1:8000", "")  # nothing is loaded from elsewhere
