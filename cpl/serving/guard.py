"""What is refused before gradio sees it: a file named by a URL, which gradio would fetch, of any size."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_LARGEST_JSON = 2**20  # bytes; what the page sends has some hundreds


class UploadsOnly:
    """An ASGI application around another: POST requests are uploads, or JSON that names no file by a URL.

    All JSON is looked at, whatever route it is for: gradio has several, and fetches for each.
    """

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or _is_form(scope):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _LARGEST_JSON:
                await _refuse(send, 413, b"This request is too large.")
                return
        try:
            json.loads(bytes(body) or b"null", object_pairs_hook=_checked)
        except (ValueError, RecursionError):  # no JSON, or a URL in it
            await _refuse(
                send, 400, b"This is not what the page sends: photos are uploaded here, not fetched."
            )
            return
        whole: list[_Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> _Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)


def _is_form(scope: _Message) -> bool:
    """Whether the body is the parts of an upload, by every header that says so: readers differ in which counts."""
    kinds = [value.strip().lower() for name, value in scope["headers"] if name.lower() == b"content-type"]
    return bool(kinds) and all(kind.startswith(b"multipart/form-data") for kind in kinds)


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, each of whose pairs is seen, those too that a later one of the same key hides."""
    for key, value in pairs:
        # The address under "url" is where the page shows an upload from; gradio fetches what is under "path".
        if key == "path" and isinstance(value, str) and value.strip().lower().startswith(("http:", "https:")):
            raise ValueError("a URL")
    return dict(pairs)


async def _refuse(send: _Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
