"""Prompt timelines of other programs as scenes; what a scene cannot express is refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from llrag_cli.errors import LlragWarning, UsageError
from llrag_cli.files.guarded import shortened

STORY_SECONDS = 5.0  # of a prompt in a story script
MOST_FRAMES = 10**8  # of a video
SWITCH_FRAMES = 40  # latent frames of a prompt in LongLive's and MemFlow's examples
SWITCH_FPS = 16  # their video frames a second
SWITCH_RATIO = 4  # their video frames of a latent frame
TOLERANCE = 1e-3  # seconds by which segments may overlap, for rounding

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*s\s*([#@]?)\s*\]\s*")


def from_scope(content: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A timeline exported by Daydream scope (version 2.0).

    ``{"prompts": [{"startTime", "endTime", "prompts": [{"text", "weight"}], "transitionSteps"?}], "settings"?}``,
    times in seconds. Between two segments the earlier prompt stays, as in scope. ``settings.seed`` is kept, and
    ``pipelineId: longlive`` names the backbone; resolution, noise and LoRAs of the settings are left out.
    """
    segments = content["prompts"]
    starts: list[float] = []
    ends: list[float] = []
    prompts: list[str] = []
    for number, segment in enumerate(segments, start=1):
        at = f"{where}, segment {number}"
        if not isinstance(segment, Mapping):
            raise UsageError(f"{at}: not a JSON object", hint="a segment has `startTime`, `endTime` and `prompts`")
        start, end = (_number(segment.get(key), f"{at}: `{key}`") for key in ("startTime", "endTime"))
        if end <= start:
            raise UsageError(f"{at}: ends at {end:g} s, not after its start at {start:g} s", hint="check its times")
        if ends and start < ends[-1] - TOLERANCE:
            sentence = f"{at}: starts at {start:g} s, before segment {number - 1} ends at {ends[-1]:g} s"
            raise UsageError(sentence, hint="segments must be in order and must not overlap")
        starts.append(start)
        ends.append(end)
        prompts.append(_scope_prompt(segment, at))
        if segment.get("transitionSteps"):
            warnings.warn(f"{at}: the prompt changes at once, without a transition", LlragWarning, stacklevel=2)
    seconds = [after - before for before, after in pairwise([*starts, ends[-1]])] if starts else []
    scene: dict[str, Any] = {
        "shots": [{"prompt": text, "seconds": length} for text, length in zip(prompts, seconds, strict=True)]
    }
    settings = content.get("settings")
    if isinstance(settings, Mapping):
        scene |= {"seed": settings["seed"]} if settings.get("seed") is not None else {}
        scene |= {"backbone": "longlive"} if settings.get("pipelineId") == "longlive" else {}
    return scene


def _scope_prompt(segment: Mapping[str, Any], where: str) -> str:
    weighted = segment.get("prompts") or [{"text": segment.get("text")}]
    if not isinstance(weighted, list) or not all(isinstance(entry, Mapping) for entry in weighted):
        raise UsageError(f"{where}: `prompts` must be a list of objects", hint='for example `[{"text": "a fox"}]`')
    texts = [entry.get("text") for entry in weighted if entry.get("weight") != 0]
    if len(texts) != 1:
        sentence = f"{where}: blends {len(texts)} prompts, but a shot has one" if texts else f"{where}: no prompt"
        raise UsageError(sentence, hint="keep one prompt with a weight above 0")
    return _prompt(texts[0], where)


def from_switches(content: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """One line of an interactive prompt file of LongLive 1.0 or MemFlow.

    ``{"prompts": ["...", ...]}`` (``prompts/interactive_example.jsonl``), one video a line. Their configuration holds
    ``switch_frame_indices: 40, 80, ...`` and ``num_output_frames: 240`` in latent frames; here both may stand in the
    line too, and by default a prompt has 40 frames. A latent frame is 4 video frames at 16 fps, so 40 are 10 seconds;
    with 3 frames a block a switch falls on the block on which it falls there.
    """
    prompts = [_prompt(text, f"{where}, prompt {number}") for number, text in enumerate(content["prompts"], start=1)]
    switches = _frame_numbers(content.get("switch_frame_indices"), where)
    if switches is None:
        switches = [SWITCH_FRAMES * number for number in range(1, len(prompts))]
    if len(switches) != len(prompts) - 1:
        sentence = f"{where}: {len(prompts)} prompts need {len(prompts) - 1} switch frames, not {len(switches)}"
        raise UsageError(sentence, hint="`switch_frame_indices` has one entry for each prompt after the first")
    end = content.get("num_output_frames", (switches[-1] if switches else 0) + SWITCH_FRAMES)
    edges = [0, *switches, end]
    if not all(isinstance(edge, int) and not isinstance(edge, bool) and edge <= MOST_FRAMES for edge in edges) or any(
        after <= before for before, after in pairwise(edges)
    ):
        listed = ", ".join(shortened(edge) for edge in edges[1:])
        raise UsageError(
            f"{where}: switch frames and the last frame must rise from above 0, not {listed[:200]}",
            hint="they are latent frames, 4 in a second",
        )
    seconds = [(after - before) * SWITCH_RATIO / SWITCH_FPS for before, after in pairwise(edges)]
    return {"shots": [{"prompt": text, "seconds": length} for text, length in zip(prompts, seconds, strict=True)]}


def _frame_numbers(value: object, where: str) -> list[Any] | None:
    """A list of frames, or LongLive's way to write one: ``40, 80``."""
    if value is None or isinstance(value, list):
        return value
    try:
        return [int(part) for part in str(value).split(",") if part.strip()]
    except ValueError:
        raise UsageError(
            f"{where}: `switch_frame_indices` must be whole numbers", hint="for example `[40, 80]`"
        ) from None


def from_story(content: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """A story script of StoryMem, the format of ST-Bench.

    ``{"story_name", "story_overview", "scenes": [{"scene_num", "video_prompts": [...], "cut": [true, ...]}]}``; a
    prompt lasts 5 seconds. ``story_overview`` and ``first_frame_prompt`` say nothing about the video and are left out.
    """
    shots = []
    for number, scene in enumerate(content["scenes"], start=1):
        at = f"{where}, scene {number}"
        prompts = scene.get("video_prompts") if isinstance(scene, Mapping) else None
        if not isinstance(prompts, list):
            raise UsageError(f"{at}: no list `video_prompts`", hint="a scene has `video_prompts` and `cut`")
        cuts = scene.get("cut")
        if not isinstance(cuts, list) or len(cuts) != len(prompts) or not all(isinstance(cut, bool) for cut in cuts):
            raise UsageError(
                f"{at}: `cut` must have `true` or `false` for each of its {len(prompts)} prompts",
                hint="for example `[true, false]`",
            )
        for index, (text, cut) in enumerate(zip(prompts, cuts, strict=True), start=1):
            prompt = _prompt(text, f"{at}, prompt {index}")
            shots.append({"prompt": prompt, "seconds": STORY_SECONDS, "cut": cut})
    title = content.get("story_name")
    return {"title": title if isinstance(title, str) else "", "shots": shots}


def from_actions(text: str, *, where: str) -> dict[str, Any]:
    """One line of an Infinity-RoPE prompt file: ``action[10s] | action[10s#] ; subtitle | subtitle``.

    ``#`` cuts. Subtitles are left out. ``@``, with which Echo-Forcing brings an earlier scene back, is refused.
    """
    shots = []
    actions, bracket, _subtitles = text.rpartition(";")
    for number, action in enumerate((actions if bracket and "]" in actions else text).split("|"), start=1):
        at = f"{where}, action {number}"
        prompt, _, tail = action.rpartition("[")
        duration = _DURATION.fullmatch(tail)
        if duration is None:
            raise UsageError(f"{at}: no duration at its end", hint="for example `a fox runs[10s] | a lake[8s#]`")
        if duration[2] == "@":
            raise UsageError(f"{at}: `@` is not supported", hint="use a scene file with `remember`")
        shot = {"prompt": _prompt(prompt, at), "seconds": float(duration[1]), "cut": duration[2] == "#"}
        shots.append(shot)
    return {"shots": shots}


def is_switches(value: object) -> bool:
    """Whether a JSON value is a list of prompts as LongLive and MemFlow write it."""
    return isinstance(value, Mapping) and _texts(value.get("prompts"))


def _texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(item, str) for item in value)


def _prompt(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: the prompt is empty", hint="describe what the shot shows")
    return value


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UsageError(f"{what} must be a time in seconds", hint="a number of at least 0")
    return float(value)
