"""Routes of the OpenAI Videos API, and what llrag adds to each video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from llrag_cli.serve.bodies import described, fields_of, read_body
from llrag_cli.serve.characters import add_character, all_characters, find_character
from llrag_cli.serve.live import PIECE, POLL, events, growing_video, opened
from llrag_cli.serve.objects import config_of, is_over, timeline_of
from llrag_cli.serve.plans import (
    CharacterFields,
    ExtendFields,
    Fields,
    RemixFields,
    SwitchFields,
    require_added,
)
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video
from llrag_cli.serve.service import Service
from llrag_cli.serve.uploads import decoded

APPLYING = 120.0  # seconds in which a new prompt takes effect, or the answer leaves open where it will
KEEP = {"cache-control": "private, max-age=3600"}  # of frames, which never change
POLL_AFTER = 500  # milliseconds, in which a client should ask again


def video_routes(service: Service) -> APIRouter:
    """Create, list, retrieve, download, change and delete videos."""
    router = APIRouter()
    queue, settings = service.queue, service.settings

    def shown(video: Video) -> JSONResponse:
        content = service.show(video)
        headers = {} if content["status"] in ("completed", "failed") else {"openai-poll-after-ms": str(POLL_AFTER)}
        return JSONResponse(content, headers=headers)

    @router.post("/v1/videos", summary="Create a video", openapi_extra=described(Fields, "input_reference"))
    async def create(request: Request) -> JSONResponse:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(Fields, body, files=("input_reference",))
            file = body.files.get("input_reference")
            accept = run_in_threadpool if file is None else service.aside
            return await accept(lambda: shown(service.plan(fields, file.file if file else None)[0]))

    @router.post("/v1/videos/extensions", summary="Extend a video", openapi_extra=described(ExtendFields, "video"))
    async def extend(request: Request) -> JSONResponse:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            named = body.fields.get("video")
            if isinstance(named, dict):
                body.fields["video"] = named.get("id")
            fields = fields_of(ExtendFields, body, files=("video",))
            file, identifier = body.files.get("video"), fields.video or fields.video_id
            if identifier is None and file is None:
                raise ApiError(400, "a video is missing", code="invalid_value", param="video")

            def extended() -> JSONResponse:
                if identifier is None and file is not None:
                    values = fields.model_dump(exclude={"video", "video_id", "cut"})
                    return shown(service.extend_file(Fields.model_validate(values), file.file)[0])
                fields.require_plain()
                video = queue.get(identifier or "")
                prompt = None if fields.prompt is None else service.require_prompt(video, fields.prompt)
                queue.extend(video, seconds=require_added(fields.seconds, settings), prompt=prompt, cut=fields.cut)
                return shown(video)

            accept = run_in_threadpool if file is None else service.aside
            return await accept(extended)

    @router.post("/v1/videos/characters", summary="Keep a clip or picture to retrieve from")
    async def create_character(request: Request) -> dict[str, Any]:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(CharacterFields, body, files=("video",))
            if (file := body.files.get("video")) is None:
                raise ApiError(400, "a file is missing", code="invalid_value", param="video")

            def added() -> dict[str, Any]:
                with decoded(file.file, param="video", kinds=("picture", "clip")) as upload:
                    return add_character(settings.runs, fields.name, upload).content

            return await service.aside(added)

    @router.get("/v1/videos/characters", summary="List characters")
    def list_characters() -> dict[str, Any]:
        return {"object": "list", "data": [each.content for each in all_characters(settings.runs)]}

    @router.get("/v1/videos/characters/{character_id}", summary="Retrieve a character")
    def retrieve_character(character_id: str) -> dict[str, Any]:
        if (found := find_character(settings.runs, character_id)) is None:
            raise ApiError(404, f"no character `{character_id[:80]}`", code="not_found", param="character_id")
        return found[0].content

    @router.get("/v1/videos/characters/{character_id}/picture", summary="A picture of a character")
    async def picture_of_character(character_id: str) -> Response:
        found = await run_in_threadpool(find_character, settings.runs, character_id)
        picture = None if found is None else await service.aside(partial(service.pictures.frame, found[1], 0, fps=1))
        if picture is None:
            raise ApiError(404, f"no character `{character_id[:80]}`", code="not_found", param="character_id")
        return Response(picture, media_type="image/jpeg", headers=KEEP)

    @router.get("/v1/videos", summary="List videos")
    def list_videos(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> dict[str, Any]:
        videos = queue.videos()
        if order == "desc":
            videos.reverse()
        if after is not None:
            ids = [video.id for video in videos]
            if after not in ids:
                raise ApiError(404, f"no video `{after[:80]}`", code="video_not_found", param="after")
            videos = videos[ids.index(after) + 1 :]
        page = videos[:limit]
        return {
            "object": "list",
            "data": [service.show(video) for video in page],
            "has_more": len(videos) > limit,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }

    @router.get("/v1/videos/{video_id}", summary="Retrieve a video")
    def retrieve(video_id: str) -> JSONResponse:
        return shown(queue.get(video_id))

    @router.get("/v1/videos/{video_id}/content", summary="Download a video, or a picture of it")
    async def content(video_id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video") -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        if not video.view.video_bytes:
            raise ApiError(
                404, "the video has no frames yet", code="not_ready", param="video_id", hint="ask again a little later"
            )
        return await service.aside(_content, service, video, variant)

    @router.get("/v1/videos/{video_id}/live", summary="The mp4 while it grows, to its end")
    async def live(video_id: str) -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        if not await opened(service.followers, video):
            return Response(status_code=204)  # it ended without any; an error would be a message of the browser
        mime = f'video/mp4; codecs="{video.view.codecs}"'
        return StreamingResponse(
            growing_video(service.followers, video), media_type="video/mp4", headers={"x-llrag-codecs": mime}
        )

    @router.get("/v1/videos/{video_id}/events", summary="Server-sent events of a video")
    async def follow(video_id: str, request: Request) -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        text = request.headers.get("last-event-id", "0")
        last = int(text) if re.fullmatch("[0-9]{1,15}", text) else 0
        return StreamingResponse(events(service.followers, video, last), media_type="text/event-stream")

    @router.delete("/v1/videos/{video_id}", summary="Delete a video and its files")
    def delete(video_id: str) -> dict[str, Any]:
        service.delete(queue.get(video_id))
        return {"id": video_id, "object": "video.deleted", "deleted": True}

    @router.post("/v1/videos/{video_id}/remix", summary="The same video under another prompt")
    async def remix(video_id: str, request: Request) -> JSONResponse:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(RemixFields, body)

            def remixed() -> JSONResponse:
                return shown(service.remix(queue.get(video_id), fields.prompt, seed=fields.seed))

            return await run_in_threadpool(remixed)

    @router.post("/v1/videos/{video_id}/switch", summary="Another prompt for a video that is being generated")
    async def switch(video_id: str, request: Request) -> JSONResponse:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = fields_of(SwitchFields, body)
        video = await run_in_threadpool(queue.get, video_id)
        asked = await run_in_threadpool(lambda: service.switch(video, fields.prompt, cut=fields.cut))
        return await _answer_switch(service, video, asked.name)

    @router.post("/v1/videos/{video_id}/pause", summary="Stop a video after its block; it keeps its place")
    def pause(video_id: str) -> JSONResponse:
        video = queue.get(video_id)
        queue.pause(video)
        return shown(video)

    @router.post("/v1/videos/{video_id}/resume", summary="Continue a video that is not complete")
    def resume(video_id: str) -> JSONResponse:
        video = queue.get(video_id)
        queue.resume(video)
        return shown(video)

    @router.post("/v1/videos/{video_id}/cancel", summary="Stop a video for good; what is there of it stays")
    def cancel(video_id: str) -> JSONResponse:
        video = queue.get(video_id)
        queue.cancel(video)
        return shown(video)

    @router.get("/v1/videos/{video_id}/frames/{latent_frame}.jpg", summary="A small picture of a latent frame")
    async def frame(video_id: str, latent_frame: int) -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        picture = await service.aside(service.frame, video, latent_frame)
        if picture is None:
            raise ApiError(404, f"the video has no latent frame {latent_frame} yet", code="not_ready")
        return Response(picture, media_type="image/jpeg", headers=KEEP)

    @router.get("/v1/models", summary="List models")
    def models() -> dict[str, Any]:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "llrag"} for name in settings.models]
        return {"object": "list", "data": data}

    return router


async def _answer_switch(service: Service, video: Video, name: str) -> JSONResponse:
    """Where a change of the prompt took place; it is awaited, unless nobody generates the video now."""
    await run_in_threadpool(video.view.refresh)
    waited = 0.0
    while waited < APPLYING:
        timeline = timeline_of(video)
        assert timeline is not None
        for shot in timeline.shots:
            if shot.name == name:
                return JSONResponse({"at_seconds": timeline.extent(shot).start_seconds, "at_block": shot.start})
        if not video.running or service.followers.is_gone(video):
            break
        await service.followers.look(video)
        waited += POLL
    return JSONResponse({"at_seconds": None, "at_block": None}, status_code=202)


def first_bytes(path: Path, size: int) -> Iterator[bytes]:
    """So many bytes of a file, in pieces; fewer if it has become shorter."""
    with path.open("rb") as file:
        while size and (piece := file.read(min(size, PIECE))):
            size -= len(piece)
            yield piece


def _content(service: Service, video: Video, variant: str) -> Response:
    config, path = config_of(video), video.view.folder.video
    if variant == "video":
        headers = {"content-disposition": f'attachment; filename="{video.id}.mp4"'}
        if is_over(video):
            return FileResponse(path, media_type="video/mp4", headers=headers)
        size = video.view.video_bytes  # the file grows while it is sent
        headers["content-length"] = str(size)
        return StreamingResponse(first_bytes(path, size), media_type="video/mp4", headers=headers)
    if config is None:
        raise ApiError(409, video.view.damage or "the run cannot be read", code="damaged", param="video_id")
    frames = max(1, config.video_frames(max(1, len(video.view.blocks)) * config.backbone.frames_per_block))
    if variant == "thumbnail":
        side = max(config.width, config.height) * config.video.upscale
        picture = service.pictures.frame(path, frames // 2, fps=config.backbone.fps, side=side)
        picture = picture or service.pictures.frame(path, 0, fps=config.backbone.fps, side=side)
    else:
        picture = service.pictures.sheet(path, frames=frames)
    if picture is None:
        raise ApiError(404, "the video has no frames yet", code="not_ready", param="video_id")
    return Response(picture, media_type="image/jpeg")
