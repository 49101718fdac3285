"""Routes of the studio page: what it needs to know, estimates, scenes, the library, groups and exports."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from llrag_cli.memory.own import strategies_without_code
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config
from llrag_cli.scenes.example import demo_scene, example_scene
from llrag_cli.serve.bodies import described, fields_of, read_body
from llrag_cli.serve.characters import all_characters
from llrag_cli.serve.estimates import estimate, readings
from llrag_cli.serve.exports import MEDIA_TYPES, Format, export
from llrag_cli.serve.plans import SECONDS, Fields, plan
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video
from llrag_cli.serve.scenes import format_scene, parse_scene, scene_text
from llrag_cli.serve.service import Service

MOST_LISTED = 1000  # runs of a library


class SceneText(BaseModel):
    """A scene as text."""

    model_config = ConfigDict(extra="forbid")

    yaml: str = Field(default="", description="text of a scene file")


class Pick(BaseModel):
    """The chosen video of a group."""

    model_config = ConfigDict(extra="forbid")

    id: str


def studio_routes(service: Service) -> APIRouter:
    """What the page asks for besides videos."""
    router = APIRouter(prefix="/v1/llrag")
    queue, settings = service.queue, service.settings

    @router.get("/info", summary="Version, models, memory strategies, and a scene that shows memory at work")
    def info() -> dict[str, Any]:
        models = [_model(name) for name in settings.models]
        embedded = [each["id"] for each in models if each["bundled"]]
        comparison = scene_text(demo_scene().model_copy(update={"backbone": None}))
        return {
            "version": version("llrag"),
            "default_model": settings.models[0],
            "models": models,
            "strategies": list(strategies_without_code()),
            "first_visit": not queue.videos(),
            "comparison": {"scene": comparison, "model": (embedded or settings.models)[0]},
            "scene_example": example_scene(),
            "exports": ["mp4", *(["zip", "otio"] if find_spec("opentimelineio") else [])],
            "generates": settings.workers > 0,
            "limits": {
                "seconds": settings.limits.seconds,
                "prompt": settings.limits.prompt,
                "takes": settings.limits.takes,
                "upload_bytes": settings.limits.upload,
            },
        }

    @router.post("/estimate", summary="What a video would take", openapi_extra=described(Fields, "input_reference"))
    async def estimated(request: Request) -> dict[str, Any]:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(Fields, body, files=("input_reference",))

        def answer() -> dict[str, Any]:
            try:
                planned = plan(fields, settings, service.resolve)
            except ApiError as error:
                problem = {"message": error.message, "hint": error.hint, "param": error.param}
                return {
                    "seconds": None, "latent_frames": None, "generation_seconds": None, "memory_bytes": None,
                    "disk_bytes": None, "fits": False, "problem": problem, "measuring": False,
                    "reading": readings(fields, settings), "shots": [],
                }  # fmt: skip
            config = planned.jobs[-1].config
            return estimate(
                planned.timeline, config, service.outlook,
                count=len(planned.jobs), runs=settings.runs, videos=queue.videos(),
            )  # fmt: skip

        return await run_in_threadpool(answer)

    @router.post("/scene/parse", summary="A scene file as JSON", openapi_extra=described(SceneText))
    async def parse(request: Request) -> dict[str, Any]:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(SceneText, body)
        return await run_in_threadpool(parse_scene, fields.yaml)

    @router.post("/scene/format", summary="A scene as the text of a scene file")
    async def form(request: Request) -> dict[str, str]:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            scene = body.fields.get("scene")
            if not isinstance(scene, dict):
                raise ApiError(400, "`scene` is missing", code="invalid_value", param="scene")
            return {"yaml": await run_in_threadpool(format_scene, scene)}

    @router.get("/library", summary="All runs in the folder, the newest first")
    def library() -> dict[str, Any]:
        videos = queue.videos()[::-1][:MOST_LISTED]
        characters = [each.content for each in all_characters(settings.runs)]
        return {"object": "list", "data": [service.show(video) for video in videos], "characters": characters}

    @router.post("/library/{run:path}/open", summary="A run by the name of its folder")
    def open_run(run: str) -> dict[str, Any]:
        for video in queue.videos():
            if str(video.folder.relative_to(settings.runs)) == run:
                return service.show(video)
        raise ApiError(404, f"no run `{run[:80]}`", code="run_not_found", param="run")

    @router.get("/groups/{group}", summary="The videos of a group: takes, or a comparison")
    def show_group(group: str) -> dict[str, Any]:
        queue.videos()  # also those of folders that are not known yet
        return grouped(group, queue.in_group(group))

    @router.post("/groups/{group}/pick", summary="Keep one video of a group", openapi_extra=described(Pick))
    async def pick(group: str, request: Request) -> dict[str, Any]:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            chosen = fields_of(Pick, body)
        return await run_in_threadpool(lambda: grouped(group, queue.pick(group, chosen.id)))

    def grouped(group: str, videos: list[Video]) -> dict[str, Any]:
        if not videos:
            raise ApiError(404, f"no group `{group[:80]}`", code="group_not_found", param="group")
        compared = any(video.job is not None and video.job.kind == "comparison" for video in videos)
        picked = [video.id for video in videos if video.job is not None and video.job.picked]
        return {
            "object": "group",
            "id": group,
            "kind": "compare" if compared else "takes",
            "videos": [service.show(video) for video in videos],
            "picked": picked[0] if picked else None,
        }

    return router


def export_routes(service: Service) -> APIRouter:
    """The files of a video for an editing program."""
    router = APIRouter()

    @router.get("/v1/videos/{video_id}/export", summary="The shots of a video as files, and a timeline")
    async def download(video_id: str, format: Format = "zip") -> Response:  # noqa: A002
        video = await run_in_threadpool(service.queue.get, video_id)
        folder = tempfile.TemporaryDirectory(prefix="llrag-export-")
        try:
            file = await service.aside(export, video, Path(folder.name), format)
        except BaseException:
            folder.cleanup()
            raise
        name = f"{video.id}-{file.name}"
        return FileResponse(
            file, media_type=MEDIA_TYPES[format], filename=name, background=BackgroundTask(folder.cleanup)
        )

    return router


def _model(name: str) -> dict[str, Any]:
    config = load_config(name)
    family = family_of(config)
    size = config.width * config.video.upscale, config.height * config.video.upscale
    return {
        "id": name,
        "about": config.about,
        "family": config.backbone.family,
        "bundled": family.bundled,
        "memory": config.memory.strategy,
        "fps": config.backbone.fps,
        "width": size[0],
        "height": size[1],
        "frames_per_block": config.backbone.frames_per_block,
        "starts_from_picture": config.backbone.frames_per_block == 1,
        "default_seconds": SECONDS if config.backbone.family != "tiny" else 10.0,
        "vocabulary": family.vocabulary(),
    }
