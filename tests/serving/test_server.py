"""Where the page listens, and how it starts and ends; as a process, over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("gradio", reason="the page needs the extra [serve]")

from cpl.errors import CplError
from cpl.models.restorer import Restorer
from cpl.serving import server as servers
from cpl.serving.server import examples, is_loopback, open_socket, serve, url_of
from cpl.serving.session import Session
from cpl.serving.sweep import swept
from tests.serving.conftest import Served, png


def test_a_port_is_taken_once() -> None:
    with open_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        assert url_of(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(CplError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            open_socket("127.0.0.1", port)
    with open_socket("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_who_can_reach_it() -> None:
    for host, own in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with open_socket(host, 0) as listening:
            assert is_loopback(listening) is own
    with open_socket("0.0.0.0", 0) as listening:
        assert url_of(listening) == f"http://{socket.gethostname()}:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("127.0.0.1", 70000, "--port must be 0 to 65535, got 70000"),
        ("127.0.0.1", -1, "got -1"),
        ("no.such.host.invalid", 0, "no.such.host.invalid.*no such address"),
        ("192.0.2.1", 0, "192.0.2.1: cannot listen there"),  # of no machine (RFC 5737)
    ],
)
def test_addresses_that_cannot_be(host: str, port: int, words: str) -> None:
    with pytest.raises(CplError, match=words):
        open_socket(host, port)


def post(url: str, content: bytes, **headers: str) -> tuple[int, str]:
    """Upload a file as the page does."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + content
        + b"\r\n--x--\r\n"
    )
    request = urllib.request.Request(f"{url}/gradio_api/upload", body, headers)
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def join(url: str, path: str) -> None:
    """Press "Restore" with this file, as the page does."""
    with urllib.request.urlopen(f"{url}/config", timeout=30) as answer:
        events = json.loads(answer.read())["dependencies"]
    button = next(event["id"] for event in events if len(event["inputs"]) == 2)
    photo = {"path": path, "url": f"{url}/gradio_api/file={path}", "meta": {"_type": "gradio.FileData"}}
    data = {"data": [photo, ""], "fn_index": button, "session_hash": "x"}
    request = urllib.request.Request(f"{url}/gradio_api/queue/join", json.dumps(data).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request, timeout=30).close()


def test_only_this_machine_is_served(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    port = int(served.url.rpartition(":")[2])
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", port)) != 0  # loopback too, but not what it listens on


def test_uploads_are_limited(served: Served) -> None:
    assert post(served.url, bytes(1000))[0] == 200
    status, said = post(served.url, bytes(400_000))
    assert status == 413
    assert "size" in said


def test_files_of_this_machine_are_not_given_out(served: Served, checkpoint: Path) -> None:
    for path in ("/etc/passwd", checkpoint, Path(__file__), f"{served.temporary}/../x"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{served.url}/gradio_api/file={path}", timeout=30)
        assert caught.value.code in (403, 404)


def test_only_uploads_are_restored(served: Served, tmp_path: Path) -> None:
    """A photo of this machine, named by its path instead of uploaded."""
    (tmp_path / "private.png").write_bytes(png())
    join(served.url, str(tmp_path / "private.png"))
    with urllib.request.urlopen(f"{served.url}/gradio_api/queue/data?session_hash=x", timeout=30) as stream:
        said = next(line for line in stream if b"process_completed" in line).decode()
    assert '"success":false' in said
    assert "restored" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "route", ["queue/join", "run/restore", "api/restore", "call/restore", "call/v2/restore"]
)
def test_nothing_is_fetched_for_a_visitor(served: Served, route: str) -> None:
    """A photo named by its address instead of uploaded."""
    photo = {"path": "http://photos.invalid/a.png", "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": [photo, ""], "fn_index": 0, "session_hash": "y"}).encode()
    request = urllib.request.Request(f"{served.url}/gradio_api/{route}", data)
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 400
    assert "uploaded here, not fetched" in caught.value.read().decode()


def test_a_broken_off_upload_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(servers, "swept", lambda folder: swept(folder, every=0.05, age=1))
    counts: list[int] = []
    own: set[Path] = set()

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    def wait(for_more: bool) -> None:
        until = time.monotonic() + 30
        while (len(files()) > len(own)) is not for_more and time.monotonic() < until:
            time.sleep(0.02)
        counts.append(len(files()) - len(own))

    def use_and_end() -> None:
        try:
            own.update(files())
            host, port = listening.getsockname()
            with socket.create_connection((host, port)) as connection:
                head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
                head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
                part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="b.png"\r\n\r\n'
                connection.sendall(head.encode() + part + bytes(300_000))
                wait(for_more=True)
            wait(for_more=False)
            counts.append(len(own - files()))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    with open_socket("127.0.0.1", 0) as listening:
        serve(Session(nn.Identity(), {}), listening, ready=threading.Timer(0.1, use_and_end).start)
    assert own
    assert counts == [1, 0, 0]  # there, gone, and the page's own files are still there


def test_the_page_says_nothing_that_is_not_needed(served: Served) -> None:
    with urllib.request.urlopen(f"{served.url}/config", timeout=30) as answer:
        config = json.loads(answer.read())
    assert config["analytics_enabled"] is False
    assert not any(event["api_visibility"] != "private" for event in config["dependencies"])
    for path in ("docs", "redoc", "monitoring"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{served.url}/{path}", timeout=30)
        assert caught.value.code in (403, 404)


def test_another_on_the_port_is_refused_at_once(served: Served, checkpoint: Path) -> None:
    from cpl.cli import main

    assert main(["serve", "--checkpoint", str(checkpoint), "--port", served.url.rpartition(":")[2]]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(
    network: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    seen: list[int] = []

    def use_and_end() -> None:
        seen.append(post(url, bytes(1000))[0])
        seen.append(len(list(tmp_path.rglob("a.png"))))
        os.kill(os.getpid(), number)

    try:
        with open_socket("127.0.0.1", 0) as listening:
            url = url_of(listening)
            ready = threading.Timer(0.1, use_and_end)
            assert serve(Session(network, {}), listening, ready=ready.start) is False
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [200, 1]
    assert os.listdir(tmp_path) == []
    assert "GRADIO_TEMP_DIR" not in os.environ
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0


def test_a_request_that_is_cut_off_by_the_end_is_no_error(
    network: Restorer, capfd: pytest.CaptureFixture[str]
) -> None:
    """A browser asks how far its upload is, of which gradio thinks for three seconds, longer than we wait."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/gradio_api/upload_progress?upload_id=none", timeout=30)

    def use_and_end() -> None:
        asking.start()
        time.sleep(0.5)  # until the request is there
        os.kill(os.getpid(), signal.SIGINT)

    with open_socket("127.0.0.1", 0) as listening:
        url, asking = url_of(listening), threading.Thread(target=ask)
        serve(Session(network, {}), listening, ready=threading.Timer(0.1, use_and_end).start)
    asking.join(30)
    said = "".join(capfd.readouterr())
    assert "Cancel 1 running task" in said, "uvicorn's word for it: nothing was cut off"
    assert "Traceback" not in said


class Stuck(nn.Module):
    """A network that is at work for as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.end = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.started.set()
        self.end.wait(60)
        return x


def test_a_restoration_under_way_does_not_hold_up_the_end() -> None:
    model = Stuck()

    def use_and_end() -> None:
        (uploaded,) = json.loads(post(url, png())[1])
        join(url, uploaded)
        model.started.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    with open_socket("127.0.0.1", 0) as listening:
        url = url_of(listening)
        assert serve(Session(model, {}), listening, ready=threading.Timer(0.1, use_and_end).start) is True
    assert model.started.is_set()
    model.end.set()


def test_examples_are_the_bundled_photos(network: Restorer, tmp_path: Path) -> None:
    made = examples(Session(network, {"noise": "noise", "rain": "rain"}), tmp_path / "examples")
    assert [(e.name, e.degradation) for e in made[:3]] == [
        ("coffee", "noise"),
        ("flower", "rain"),
        ("astronaut", "noise"),
    ]
    assert len({e.path for e in made}) == len(made) == 7
    for example in made:
        with Image.open(example.path) as image:
            assert max(image.size) < 400
    plain = examples(Session(network, {}), tmp_path / "plain")
    assert {e.degradation for e in plain} == {""}
