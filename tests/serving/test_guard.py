"""What is refused before gradio sees it, and what reaches it as it was sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from cpl.serving.guard import UploadsOnly

JSON = (b"content-type", b"application/json")
FORM = (b"content-type", b"multipart/form-data; boundary=x")
PHOTO = {"path": "/tmp/a.png", "url": "http://127.0.0.1:7860/gradio_api/file=/tmp/a.png"}


def ask(
    *chunks: bytes, method: str = "POST", headers: tuple[Any, ...] = (JSON,), leaves: bool = False
) -> tuple[int, bytes | None]:
    """The answer's status and what the application behind got; (0, None) where nobody is answered."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if not leaves:
        messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})
    sent: list[Any] = []
    got: list[bytes] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        assert (await receive())["type"] == "http.disconnect"  # which gradio waits for
        got.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "method": method, "path": "/gradio_api/queue/join", "headers": list(headers)}
    asyncio.run(UploadsOnly(behind)(scope, receive, send))
    return (sent[0]["status"] if sent else 0), (got[0] if got else None)


def event(photo: Any) -> bytes:
    return json.dumps({"data": [photo, ""], "fn_index": 2, "session_hash": "x"}).encode()


def test_what_the_page_sends_goes_through() -> None:
    sent = event(PHOTO)
    assert ask(sent) == (200, sent)
    assert ask(sent[:20], sent[20:50], sent[50:]) == (200, sent)
    assert ask(event(None)) == (200, event(None))
    assert ask(b"") == (200, b"")
    picture = b'--x\r\n\r\n{"path": "https://example.com"}\xff\r\n--x--'
    assert ask(picture, headers=(FORM,)) == (200, picture)
    assert ask(bytes(2**20 + 1), headers=(FORM,)) == (
        200,
        bytes(2**20 + 1),
    )  # uploads have a limit of their own
    assert ask(b"", method="GET", headers=()) == (200, b"")


@pytest.mark.parametrize(
    "body",
    [
        event({"path": "https://example.com/a.png"}),
        event({"path": "HTTP://example.com"}),
        event({"path": " http://example.com"}),
        event([[{"value": {"path": "http://example.com"}}]]),
        b'{"path": "\\u0068ttps://example.com"}',
        b'{"path": "http://example.com", "path": "/tmp/a.png"}',  # readers differ in which of the two counts
        json.dumps({"path": "http://example.com"}).encode("utf-16"),
        b"path=http://example.com",
        b"\xff",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("headers", [(), (JSON,), (FORM, JSON), (JSON, FORM)], ids=["", "json", "fj", "jf"])
def test_urls_do_not(body: bytes, headers: tuple[Any, ...]) -> None:
    assert ask(body, headers=headers) == (400, None)
    assert ask(body[:7], body[7:], headers=headers) == (400, None)


def test_nobody_fills_the_memory() -> None:
    assert ask(b'"' + b"a" * (2**20 - 2) + b'"')[0] == 200
    assert ask(b'"', b"a" * 2**20, b'"') == (413, None)


def test_who_leaves_is_not_answered() -> None:
    assert ask(event(PHOTO)[:20], leaves=True) == (0, None)
