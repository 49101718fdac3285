"""Routes of the OpenAI Videos API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from llrag_cli.serve.bodies import read_body
from llrag_cli.serve.live import events, growing_video, opened
from llrag_cli.serve.objects import config_of
from llrag_cli.serve.plans import Fields, parse_fields, plan, require_prompt
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video
from llrag_cli.serve.service import Service

POLL_AFTER = 500  # milliseconds, in which a client should ask again


def video_routes(service: Service) -> APIRouter:
    """Create, list, retrieve, download, change and delete videos."""
    router = APIRouter()
    queue, settings = service.queue, service.settings

    def shown(video: Video) -> JSONResponse:
        content = service.show(video)
        headers = {} if content["status"] in ("completed", "failed") else {"openai-poll-after-ms": str(POLL_AFTER)}
        return JSONResponse(content, headers=headers)

    @router.post("/v1/videos", summary="Create a video")
    async def create(request: Request) -> JSONResponse:
        async with read_body(request, largest_field=settings.limits.fields) as body:
            fields = parse_fields(Fields, body.fields)

            def accepted() -> JSONResponse:
                if fields.prompt is not None:
                    fields.prompt = require_prompt(fields.prompt, settings)
                return shown(service.accept(plan(fields, settings, service.resolve))[0])

            return await run_in_threadpool(accepted)

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
    def content(video_id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video") -> Response:
        video = queue.get(video_id)
        if not video.view.video_bytes:
            raise ApiError(
                404, "the video has no frames yet", code="not_ready", param="video_id", hint="ask again a little later"
            )
        return _content(service, video, variant)

    @router.get("/v1/videos/{video_id}/live", summary="The mp4 while it grows, to its end")
    async def live(video_id: str) -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        if not await opened(service.followers, video):
            raise ApiError(404, "the video has no frames", code="not_ready", param="video_id")
        mime = f'video/mp4; codecs="{video.view.codecs}"'
        return StreamingResponse(
            growing_video(service.followers, video), media_type="video/mp4", headers={"x-llrag-codecs": mime}
        )

    @router.get("/v1/videos/{video_id}/events", summary="Server-sent events of a video")
    async def follow(video_id: str, request: Request) -> Response:
        video = await run_in_threadpool(queue.get, video_id)
        text = request.headers.get("last-event-id", "0")
        last = int(text) if text.isdigit() and len(text) < 16 else 0
        return StreamingResponse(events(service.followers, video, last), media_type="text/event-stream")

    @router.post("/v1/videos/{video_id}/cancel", summary="Stop a video for good; what is there of it stays")
    def cancel(video_id: str) -> JSONResponse:
        video = queue.get(video_id)
        queue.cancel(video)
        return shown(video)

    return router


def _content(service: Service, video: Video, variant: str) -> Response:
    config, path = config_of(video), video.view.folder.video
    if variant == "video":
        headers = {"content-disposition": f'attachment; filename="{video.id}.mp4"'}
        return FileResponse(path, media_type="video/mp4", headers=headers)
    assert config is not None
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
