"""Where the page is served: one socket, opened before anything else, and a quick and quiet end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpl.errors import CplError
from cpl.extras import require
from cpl.images import write_image
from cpl.serving.guard import UploadsOnly
from cpl.serving.session import AS_IT_IS, Session
from cpl.serving.sweep import swept
from cpl.serving.worker import Worker

_GRACE = 2  # seconds that open connections have to finish when the server stops
EXAMPLE_SCALE = 0.5  # of the bundled photos' size, so that a CPU answers in seconds


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CplError: the port is in use, is not ours to take, or there is no such host here.
    """
    if not 0 <= port <= 65535:
        raise CplError(f"--port must be 0 to 65535, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise CplError(
            f"--host {host!r}: no such address ({error}); 127.0.0.1 is this machine alone"
        ) from None
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not refused for a connection just closed
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise CplError(
                f"port {port} of {host} is in use; choose another with --port, or 0 for a free one"
            ) from None
        if error.errno == errno.EACCES:
            raise CplError(f"port {port} is not yours to take; choose one above 1023 with --port") from None
        raise CplError(
            f"--host {host}: cannot listen there ({error.strerror}); 127.0.0.1 is this machine alone"
        ) from None
    return made


def is_loopback(listening: socket.socket) -> bool:
    """Whether nobody but this machine can reach it."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    session: Session, listening: socket.socket, about: str = "", ready: Callable[[], None] = lambda: None
) -> bool:
    """Serve the page until Ctrl-C or SIGTERM; what was uploaded is gone then.

    Args:
        listening: of :func:`open_socket`; closed at the end.
        about: a line for the page's head.
        ready: called once the page is being served.

    Returns:
        Whether a restoration was still under way.
    """
    with _scratch() as folder, contextlib.closing(listening):
        # Only now: gradio reads where to keep files, and whether to measure, when it is imported.
        from cpl.serving.page import Handlers, build, look

        gr, fastapi, uvicorn = (require(name, "serve") for name in ("gradio", "fastapi", "uvicorn"))
        worker = Worker()
        restored = folder / "restored"
        restored.mkdir()
        handlers = Handlers(session, worker, restored, examples(session, folder / "examples"))
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            build(handlers, about),
            path="/",
            server_name=listening.getsockname()[0],
            server_port=listening.getsockname()[1],
            allowed_paths=[str(restored)],
            max_file_size=session.limits.upload_bytes,
            show_error=False,  # an unforeseen error's text is for the log, not for visitors
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            **look(),
        )

        class Server(uvicorn.Server):  # type: ignore[name-defined]
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                if self.started:
                    ready()

        config = uvicorn.Config(
            UploadsOnly(app),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
            server_header=False,
        )
        server = Server(config)
        # uvicorn raises the signal again once it has ended.
        with contextlib.suppress(KeyboardInterrupt), swept(folder), _quiet_end(server):
            server.run(sockets=[listening])
        return worker.busy


@contextlib.contextmanager
def _quiet_end(server: Any) -> Iterator[None]:
    """A request that is still open when the server stops is no error, and its traceback would look like one."""

    def is_to_be_said(record: logging.LogRecord) -> bool:
        cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
        return not (server.should_exit and cut_off)

    log = logging.getLogger("uvicorn.error")
    log.addFilter(is_to_be_said)
    try:
        yield
    finally:
        log.removeFilter(is_to_be_said)


def examples(session: Session, folder: Path) -> list[Any]:
    """The bundled photos, smaller, in ``folder``, each with a degradation of those offered, in turn."""
    from cpl.data.photos import bundled_photos
    from cpl.serving.page import Example

    folder.mkdir()
    made = []
    # Those held out from training first. The two motorcycles are one scene.
    photos = [*bundled_photos("test", EXAMPLE_SCALE), *bundled_photos("train", EXAMPLE_SCALE)]
    names = list(session.degradations) or [AS_IT_IS]
    for index, photo in enumerate(p for p in photos if p.name != "motorcycle_right"):
        path = folder / f"{photo.name}.png"
        write_image(path, np.asarray(photo.image))
        made.append(Example(photo.name.removesuffix("_left"), path, names[index % len(names)]))
    return made


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for uploads and results that ends with the server, and gradio told to use it and to call nobody."""
    with tempfile.TemporaryDirectory(prefix="cpl-serve-", ignore_cleanup_errors=True) as name:
        settings = {
            "GRADIO_TEMP_DIR": str(Path(name) / "uploads"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before = {key: os.environ.get(key) for key in settings}
        os.environ.update(settings)
        try:
            yield Path(name)
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
