"""The application: routes, errors in one shape, and the files of the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from llrag_cli.errors import LlragError
from llrag_cli.serve.guard import Guard
from llrag_cli.serve.problems import ApiError, error_content, refused
from llrag_cli.serve.queue import Queue
from llrag_cli.serve.reference import docs_page
from llrag_cli.serve.service import Service
from llrag_cli.serve.settings import ServeSettings
from llrag_cli.serve.studio import export_routes, studio_routes
from llrag_cli.serve.videos import video_routes
from llrag_cli.serve.workers import Workers

PAGE = Path(__file__).with_name("page")


def create_app(settings: ServeSettings) -> FastAPI:
    """The application of a server. Its workers run from startup to shutdown."""
    service = Service(settings, Queue(settings.runs, settings.limits, read_only=not settings.workers))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        workers = Workers(service.queue, service.outlook, settings)
        workers.start()
        try:
            yield
        finally:
            service.followers.closing = True
            workers.close()

    app = FastAPI(title="llrag", version=version("llrag"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(video_routes(service))
    app.include_router(export_routes(service))
    app.include_router(studio_routes(service))
    app.mount("/studio", StaticFiles(directory=PAGE), name="studio")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.content, status_code=error.status)

    @app.exception_handler(LlragError)
    async def explain(request: Request, error: LlragError) -> JSONResponse:
        return JSONResponse(refused(error).content, status_code=400)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        content = error_content(400, f"`{param}`: {first['msg']}", code="invalid_value", param=param)
        return JSONResponse(content, status_code=400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            error_content(error.status_code, str(error.detail)), status_code=error.status_code, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_content(500, "the server failed; its log says why"), status_code=500)

    app.add_middleware(Guard, settings=settings)
    return app
