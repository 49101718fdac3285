"""The memory map of scenes: exact numbers of a log with a switch, cuts, masks and references, its page and picture."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import Llrag
from llrag_cli.config import RunConfig
from llrag_cli.errors import DamagedRunError
from llrag_cli.evaluation.inspect import (
    describe,
    memory_stats,
    require_known_frames,
    retrieved_by_shot,
)
from llrag_cli.evaluation.memory_map import draw_memory_map
from llrag_cli.evaluation.memory_page import memory_json, memory_page, summary
from llrag_cli.evaluation.scene_map import SceneMap
from llrag_cli.evaluation.thumbnails import reference_thumbnails
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import BlockMemory, RunFolder, memory_line
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import VideoWriter
from llrag_cli.scenes.timeline import ReferenceSpan, Timeline
from runs.records import record_of
from scenes.test_replay import TIMELINE, span

SETTINGS = ["memory.window=6", "memory.retrieved=2", "memory.guard=1", "memory.sink=1"]
CONFIG = load_config("tiny", settings=SETTINGS)  # 8 frames a second; latent frames are half a second apart
RETRIEVED = {  # by block; candidates are those of `test_candidates_of_a_known_timeline`
    0: (-3, -1),
    1: (-1, -2),
    2: (-3, -2),
    3: (1, -3),
    4: (5, 1),
    7: (14, -3),
    8: (14, 2),
    9: (1, 3),
    13: (32, 31),
}
LOG = tuple(
    BlockMemory(
        3 * block,
        RETRIEVED.get(block, ()),
        (0.75, 0.25) if block in RETRIEVED else (),
        tuple(TIMELINE.name_of(frame) for frame in RETRIEVED.get(block, ())),
    )
    for block in range(14)
)
HOSTILE = "a room </script><script>alert(1)</script><!-- & 'quotes'\" {{ 7 * 7 }} $x^2$"


def record(timeline: Timeline = TIMELINE, config: RunConfig = CONFIG, **changes: Any) -> RunRecord:
    return record_of().updated(
        timeline=timeline,
        config=config,
        latent_frames=timeline.latent_frames,
        video_frames=timeline.video_frames,
        **changes,
    )


def test_numbers_of_a_known_scene() -> None:
    stats = memory_stats(LOG, CONFIG, TIMELINE)
    assert stats is not None
    assert (stats.blocks, stats.retrieving) == (14, 9)
    assert stats.coverage == pytest.approx(10 / 19)  # of 3 frames of references, 1 .. 14, 31 and 32
    assert stats.repeated == pytest.approx(5 / 12)  # nothing was retrieved just before blocks 7 and 13
    assert stats.most_retrieved[:2] == ((0.0, 4), (0.5, 3))
    assert stats.most_retrieved_sources[:2] == ("pic", "a")
    assert stats.lookback == pytest.approx(4.0)  # of 7, 7, 7, 8, 8, 10, 11, 22, 24 and 26 frames, the lower middle
    assert stats.near_guard == pytest.approx((1 / 2 + 1 + 1) / 9)  # blocks 3, 4 and 13; no window reaches over a cut
    assert stats.similarity == pytest.approx(0.25)
    assert stats.by_source == pytest.approx({"a": 8 / 18, "pic": 4 / 18, "clip": 4 / 18, "d": 2 / 18})
    assert [*stats.by_source] == ["a", "pic", "clip", "d"]


def test_numbers_in_words_name_their_sources() -> None:
    rows = dict(describe(memory_stats(LOG, CONFIG, TIMELINE), TIMELINE))
    assert rows["retrieved from"] == "44 % a, 22 % pic, 22 % clip, 11 % d"
    assert rows["most retrieved"].startswith("pic (4 times), 0.5 s in a (3 times), clip at 0.5 s (2 times)")
    assert rows["lookback"] == "4.0 s (median, without the frames of references)"


def test_lookback_is_none_where_only_references_were_retrieved() -> None:
    stats = memory_stats(LOG[:3], CONFIG, TIMELINE)
    assert stats is not None and stats.lookback is None and stats.near_guard == 0
    assert dict(describe(stats, TIMELINE))["lookback"] == "none: all retrieved frames are of references"


def test_what_each_shot_retrieved_from_which() -> None:
    counts = retrieved_by_shot(LOG, TIMELINE)
    assert counts == {"a": {"pic": 3, "clip": 4, "a": 3}, "b": {}, "c": {"pic": 1, "a": 5}, "d": {"d": 2}}
    without = tuple(BlockMemory(block.frame, block.retrieved, block.similarities) for block in LOG)
    assert retrieved_by_shot(without, TIMELINE) == counts  # logs of earlier versions have no `sources`


def test_json_has_names() -> None:
    content = json.loads(json.dumps(memory_json(record(title="A title"), LOG, memory_stats(LOG, CONFIG, TIMELINE))))
    assert content["title"] == "A title" and content["coverage"] == pytest.approx(10 / 19)
    assert content["shots"][2] == {
        "name": "c",
        "kind": "cut",
        "prompt": "shot c",
        "blocks": [7, 9],
        "latent_frames": [21, 29],
        "video_frames": [81, 116],
        "start_seconds": 81 / 8,
        "end_seconds": 117 / 8,
        "may_remember": ["pic", "a", "c"],
        "sink": "a",
        "retrieved": {"pic": 1, "a": 5},
    }
    assert [(each["name"], each["first_frame"], each["retrieved"]) for each in content["references"]] == [
        ("pic", -3, 4),
        ("clip", -2, 4),
    ]
    assert content["log"][5] == {
        "block": 7,
        "frame": 21,
        "seconds": 10.5,
        "shot": "c",
        "retrieved": [
            {"frame": 14, "source": "a", "seconds": 7.0, "cosine": 0.75},
            {"frame": -3, "source": "pic", "seconds": 0.0, "cosine": 0.25},
        ],
    }


def test_the_page_lists_shots_references_and_blocks() -> None:
    page = memory_page(RunFolder(Path("run")), record(title="A title"), LOG, None, b"")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "Memory of A title" in text and summary(TIMELINE) == "4 shots: 1 switch, 2 cuts; 2 references"
    assert "3 c cut shot c 10.12 – 14.62 s 7-9 21-29 81-116 pic, a, itself of a" in text
    assert "4 d cut shot d 14.62 – 20.62 s 10-13 30-41 117-164 itself its own first frames" in text
    assert "pic pic.png none 1 may be retrieved by a, c" in text
    assert "by \\ from pic clip a d all a 3 4 3 0 10 b 0 0 0 0 0 c 1 0 5 0 6 d 0 0 0 2 2 all 4 4 8 2 18" in text
    assert "7 10.5 s c a : frame 14 at 7.0 s (0.750) pic : its one frame (0.250)" in text
    assert "0 0.0 s a pic : its one frame (0.750) clip : frame 1 of 2 (0.250)" in text


def test_an_unfinished_run_says_what_is_missing() -> None:
    page = memory_page(RunFolder(Path("run")), record(status="interrupted"), LOG[:8], None, b"")
    assert "1 of 3 blocks are generated" in page and "0 of 4 blocks are generated" in page
    assert draw_memory_map(CONFIG, LOG[:8], {}, TIMELINE).startswith(b"\x89PNG")
    assert draw_memory_map(CONFIG, (), {}, TIMELINE).startswith(b"\x89PNG")


def test_hostile_names_and_prompts_are_escaped() -> None:
    a, b, c, d = TIMELINE.shots
    shots = (
        a.model_copy(update={"name": HOSTILE, "sink": HOSTILE, "prompt": HOSTILE}),
        b.model_copy(update={"sink": HOSTILE}),
        c.model_copy(update={"remember": (HOSTILE, "<b>pic"), "sink": HOSTILE}),
        d,
    )
    pic, clip = TIMELINE.references
    references = (pic.model_copy(update={"name": "<b>pic", "prompt": HOSTILE, "path": Path("<i>.png")}), clip)
    timeline = TIMELINE.model_copy(update={"shots": shots, "references": references})
    log = tuple(
        BlockMemory(each.frame, each.retrieved, each.similarities, tuple(map(timeline.name_of, each.retrieved)))
        for each in LOG
    )
    stats = memory_stats(log, CONFIG, timeline)
    page = memory_page(RunFolder(Path("run")), record(timeline, title=HOSTILE), log, stats, b"")
    assert "<script" not in page and "<b>pic" not in page and "<i>" not in page and "49" not in page
    assert page.count("&lt;script&gt;") >= 6 and "{{ 7 * 7 }}" in page
    assert draw_memory_map(CONFIG, log, {}, timeline).startswith(b"\x89PNG")  # `$x^2$` is no formula


@pytest.mark.parametrize(
    "block",
    [
        BlockMemory(0, (42,), (0.5,), ("d",)),
        BlockMemory(0, (-4,), (0.5,), ("pic",)),
        BlockMemory(42),
        BlockMemory(0, (-3,), (0.5,), ("other",)),
        BlockMemory(0, (-3, -2), (0.5, 0.5), ("pic",)),
    ],
)
def test_logs_that_do_not_fit_the_record(block: BlockMemory) -> None:
    require_known_frames(RunFolder(Path("run")), record(), LOG)
    with pytest.raises(DamagedRunError, match="line 1"):
        require_known_frames(RunFolder(Path("run")), record(), (block,))


def test_references_are_bands_below_the_video() -> None:
    scene = SceneMap(CONFIG, TIMELINE, LOG)
    assert scene.end == 21.0
    assert scene.height(0) == 0.25 and scene.height(41) == 20.75
    (low, high), (lowest, between) = scene.bands.values()
    assert high == 0 and low == between and lowest < low
    assert scene.height(-3) == pytest.approx((low + high) / 2)
    assert lowest < scene.height(-2) < scene.height(-1) < between


@pytest.mark.parametrize("memory", ["none", "nearest"])
def test_pictures_have_the_size_of_their_rows(memory: str) -> None:
    config = CONFIG if memory == "nearest" else load_config("tiny", memory="none")
    log = LOG if memory == "nearest" else tuple(BlockMemory(each.frame) for each in LOG)
    pictures = {frame: torch.rand(16, 16, 3) for frame in (42, 14)}
    image = Image.open(BytesIO(draw_memory_map(config, log, pictures, TIMELINE)))
    rows = 6 if memory == "nearest" else 0
    assert image.size == (1100, round(110 * (6.2 + 2 * 0.3 + 1.6 * rows)))


def test_names_in_any_script_are_drawn() -> None:
    names = {"a": "到达", "b": "прибытие", "c": "c" * 64, "d": "d"}
    shots = tuple(
        span(name, each.start, each.stop, each.kind) for each, name in zip(TIMELINE.shots, names.values(), strict=True)
    )
    timeline = TIMELINE.model_copy(update={"shots": shots})
    log = [BlockMemory(each.frame, each.retrieved, each.similarities) for each in LOG]
    assert draw_memory_map(CONFIG, log, {}, timeline).startswith(b"\x89PNG")


def test_pictures_of_references(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "run").mkdir()
    levels = (4.0 * torch.arange(29) + 10) / 127.5 - 1
    for path, fps in ((tmp_path / "run/video.mp4", 8), (tmp_path / "clip.mp4", 16)):
        writer = VideoWriter(path, fps=fps, upscale=4, crf=8)
        writer.write(levels[:, None, None, None].expand(-1, 3, 16, 16))
        writer.close()
    paths = {"red": "red.png", "run": "run", "clip": "clip.mp4", "lost": "lost.png", "torn": "torn.mp4"}
    (tmp_path / "torn.mp4").write_bytes(b"nothing")
    spans = tuple(ReferenceSpan(name=name, path=tmp_path / path, latent_frames=3) for name, path in paths.items())
    timeline = TIMELINE.model_copy(update={"references": spans, "shots": (span("a", 0, 5, "start"),)})
    pictures = reference_thumbnails(timeline, range(-15, 3), CONFIG)
    assert {*pictures} == {*range(-15, -6)}  # not of files that are gone or damaged
    assert pictures[-15].shape == (120, 120, 3) and pictures[-15][..., 0].min() > 0.99 > pictures[-15][..., 1].max()
    shown = [round((255 * float(pictures[frame].mean()) - 10) / 4) for frame in range(-12, -6)]
    assert shown == [0, 4, 8, 0, 8, 16]  # of the run at 8 frames a second, of the clip at 16


def test_a_scene_is_mapped(llrag: Llrag, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_record(record(title="A title"))
    folder.memory.write_bytes(b"".join(memory_line(number, block) for number, block in enumerate(LOG)))
    writer = VideoWriter(folder.video, fps=8, upscale=1, crf=18)
    writer.write(torch.zeros(165, 3, 64, 64))
    writer.close()
    told = llrag("inspect", "run")
    assert told.returncode == 0, told.stderr
    assert "44 % a, 22 % pic, 22 % clip, 11 % d" in told.stdout
    content = json.loads(llrag("inspect", "run", "--json").stdout)
    assert content["files"] == ["run/memory.png", "run/memory.html"]
    assert content["by_source"]["d"] == pytest.approx(2 / 18) and len(content["log"]) == 9
    folder.memory.write_bytes(memory_line(0, BlockMemory(0, (99,), (0.5,), ("a",))))
    damaged = llrag("inspect", "run")
    assert damaged.returncode == 1 and "line 1 has frames that the run has not" in damaged.stderr
