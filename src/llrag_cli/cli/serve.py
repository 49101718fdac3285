"""``llrag serve``: videos over HTTP, and the studio page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llrag_cli.cache.sharing import Sharing
from llrag_cli.cli.options import COMPUTING, Attention, Compile, Device, Dtype, Fast, Offload, ShareBuffers
from llrag_cli.errors import RunLockedError, UnwritableError, UsageError

if TYPE_CHECKING:
    from llrag_cli.serve.settings import ServeSettings

DEFAULT_PORT = 8000
Host = Annotated[str, typer.Option(help="Address to listen on; any but this machine's own asks for a token")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is a free one")]
Backbones = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="Bundled preset that clients may choose, the first by default; repeatable; default: all whose weights are "
        "installed",
    ),
]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs")]
Token = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Token that clients must send; one is generated where it is needed")
]
Names = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Further host name that requests may be sent to; repeatable"),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="ENGINE",
        help="Where videos are generated: local, local:N (N at a time), ray[:ADDRESS][?gpus=0.5] (GPUs per video)",
        **COMPUTING,
    ),
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    backbones: Backbones = None,
    runs: Runs = Path("runs"),
    token: Token = None,
    names: Names = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    attention: Attention = "auto",
    compile_: Compile = False,
    sharing: ShareBuffers = "none",
    fast: Fast = False,
    engine: Engine = "local",
) -> None:
    """Serve videos over HTTP, as the OpenAI Videos API does, and the studio page.

    Videos are generated one after the other, each into a run folder. If the
    server is stopped or killed, it continues with them when it is started
    again.
    """
    require_extra()
    settings = settings_of(
        host=host, backbones=backbones, runs=runs, token=token, names=names, device=device, dtype=dtype,
        computing=(offload, attention, compile_, sharing, fast), engine=engine,
    )  # fmt: skip
    run(settings, port)


def require_extra() -> None:
    """Raise an error unless the packages of the extra `serve` are installed."""
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the server needs packages that are not installed: {', '.join(missing)}",
            hint="`pip install 'llrag[serve]'`",
        )


def settings_of(
    *,
    backbones: list[str] | None,
    runs: Path,
    host: str = "127.0.0.1",
    token: str | None = None,
    names: list[str] | None = None,
    device: str,
    dtype: str,
    computing: tuple[bool, str, bool, Sharing, bool],
    engine: str,
) -> ServeSettings:
    """The settings of a server, all checked; ``computing`` are the fields of ``Computing`` after the dtype."""
    import secrets

    from llrag_cli.batch.executors import Processes, RayCluster, parse_engine
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.serve.models import offered
    from llrag_cli.serve.settings import Computing, ServeSettings, is_loopback

    where = parse_engine(engine)
    try:
        RunFolder(runs).require_writable()
    except UnwritableError as error:
        raise UsageError(error.problem, hint="choose another folder with `--runs`") from None
    if token is not None and len(token) < 8:
        raise UsageError("the token is shorter than 8 characters", hint="leave out `--token`, and one is generated")
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    return ServeSettings(
        runs=runs.absolute(),
        models=offered(backbones or ()),
        host=host,
        names=tuple(names or ()),
        token=token,
        workers=where.count if isinstance(where, Processes) else 1,
        cluster=where if isinstance(where, RayCluster) else None,
        computing=Computing(device, dtype, *computing),
    )


def run(settings: ServeSettings, port: int | None, *, browse: bool = False, fragment: str = "") -> None:
    """Serve until Ctrl-C; print where, and open a browser there if asked for. No port is 8000, or a free one."""
    from llrag_cli.cli import console

    with console.working("starting"):
        from llrag_cli.serve.running import bound, serve

        try:
            opened = bound(settings.host, DEFAULT_PORT if port is None else port)
        except UsageError:
            if port is not None:
                raise
            opened = bound(settings.host, 0)
    address = address_of(settings.host, opened.getsockname()[1])
    address += f"/{fragment}" if settings.token is None else f"/?token={settings.token}{fragment}"

    def ready() -> None:
        console.result(address)
        console.note(f"models: {', '.join(settings.models)}; runs in `{settings.runs}`; Ctrl-C stops the server")
        if browse:
            import webbrowser

            webbrowser.open(address)

    try:
        serve(settings, opened, on_ready=ready)
    except RunLockedError:
        raise UsageError(
            f"another server uses `{settings.runs}`", hint="stop it, or choose another folder with `--runs`"
        ) from None
    except KeyboardInterrupt:
        console.note("stopped; videos that are not finished continue when the server is started again")


def address_of(host: str, port: int) -> str:
    """The address of a server for a browser."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host
    return f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{port}"
