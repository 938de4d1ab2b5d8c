"""The page's handlers, without a browser, and the page's settings."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the extra [serve]")

from cpl.inference.inspect import Usage
from cpl.models.restorer import Restorer
from cpl.serving import page as pages
from cpl.serving.page import Example, Handlers, build, look, shown
from cpl.serving.session import Limits, Session
from cpl.serving.worker import Worker
from tests.serving.conftest import bomb, png


@pytest.fixture
def handlers(network: Restorer, usage: Usage, tmp_path: Path) -> Handlers:
    (tmp_path / "out").mkdir()
    session = Session(network, {"noise": "noise", "low_light": "low_light"}, usage, Limits(pixels=20_000))
    examples = [Example("coffee", tmp_path / "a.png", "noise"), Example("flower", tmp_path / "b.png", "")]
    for example in examples:
        example.path.write_bytes(png())
    return Handlers(session, Worker(), tmp_path / "out", examples)


def press(handlers: Handlers, path: Path | None, degradation: str = "", **options: Any) -> tuple[Any, ...]:
    return asyncio.run(handlers.restore(None if path is None else str(path), degradation, **options))


def test_a_photo_comes_back(handlers: Handlers, tmp_path: Path) -> None:
    (before, after), file, said, chosen = press(handlers, tmp_path / "a.png", "noise")
    assert before.size == after.size == (40, 24)
    assert Path(file).name == "a_restored.png"
    with Image.open(file) as written:
        assert np.array_equal(np.asarray(written), np.asarray(after))
        assert not np.array_equal(np.asarray(written), np.asarray(before))
    assert "noise added and restored" in said
    assert chosen.count('class="cpl-chosen"') >= 3
    assert "What it takes the photo for" in chosen


@pytest.mark.parametrize(
    "content", [b"nothing", png()[:80], bomb(), png(200, 101)], ids=["text", "cut", "bomb", "large"]
)
def test_a_bad_file_gets_a_message(handlers: Handlers, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    pictures, file, said, chosen = press(handlers, tmp_path / "bad.png")
    assert (pictures, file, chosen) == (None, None, "")
    assert 'role="alert"' in said
    assert "Traceback" not in said
    assert str(tmp_path) not in said
    assert press(handlers, tmp_path / "a.png")[0] is not None  # the next visitor is served


def test_no_file_gets_a_message(handlers: Handlers) -> None:
    assert "Choose a photo" in press(handlers, None)[2]


def test_a_fault_of_ours_is_not_shown_but_logged(
    handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(handlers.session, "_restore", broken)
    said = press(handlers, tmp_path / "a.png")[2]
    assert "Something went wrong" in said
    assert "secret" not in said
    assert "a secret" in capsys.readouterr().err


def test_progress_is_passed_on(handlers: Handlers, tmp_path: Path) -> None:
    handlers.session.limits = Limits(memory=8 * 2**20)
    (tmp_path / "large.png").write_bytes(png(64, 64))
    shares: list[float] = []
    press(handlers, tmp_path / "large.png", progress=lambda share, desc: shares.append(share))
    assert shares[-1] == pytest.approx(1)


def test_old_results_are_removed(handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_FILES_KEPT", 2)
    files = [Path(press(handlers, tmp_path / "a.png")[1]) for _ in range(3)]
    assert [file.exists() for file in files] == [False, True, True]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_one_photo_at_a_time() -> None:
    worker, inside, most = Worker(), [], []
    gate = threading.Event()

    def job() -> int:
        inside.append(1)
        most.append(len(inside))
        gate.wait(5)
        inside.pop()
        return len(most)

    futures = [worker.submit(job) for _ in range(3)]
    assert futures[2].cancel()  # this visitor leaves while waiting
    gate.set()
    assert [future.result(10) for future in futures[:2]] == [1, 2]
    assert worker.submit(lambda: 7).result(10) == 7
    assert max(most) == 1
    with pytest.raises(KeyError):
        worker.submit(lambda: {}["a"]).result(10)


def test_examples(handlers: Handlers, tmp_path: Path) -> None:
    assert handlers.example(0) == (str(tmp_path / "a.png"), "noise")
    assert handlers.example(1) == (str(tmp_path / "b.png"), "")


def test_large_pictures_are_shown_smaller() -> None:
    assert shown(np.zeros((30, 4096, 3), np.float32)).size == (2048, 15)
    picture = shown(np.full((4, 5, 3), 0.5, np.float32))
    assert (picture.size, picture.getpixel((0, 0))) == ((5, 4), (128, 128, 128))


def test_the_page_is_closed(handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No telemetry, no fonts from elsewhere, nothing to call from programs, one at a time."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    page = build(handlers, "<b>")
    assert page.analytics_enabled is False
    assert page.delete_cache is None  # its own would take the examples' pictures along: cpl/serving/sweep.py
    config = page.get_config_file()
    assert all(event["api_visibility"] == "private" for event in config["dependencies"])
    restoring = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert [fn.concurrency_limit for fn in restoring] == [1, 1]
    values = [c["props"].get("value") for c in config["components"]]
    assert any("&lt;b&gt;" in str(value) for value in values)
    assert not any("> <b>" in str(value) for value in values)
    (photo,) = (c for c in config["components"] if c["props"].get("elem_id") == "cpl-photo")
    assert ".png" in photo["props"]["file_types"]
    assert ".svg" not in photo["props"]["file_types"]
    (slider,) = (c for c in config["components"] if c["props"].get("elem_id") == "cpl-slider")
    assert slider["type"] == "imageslider"
    theme = look()["theme"]
    assert theme._stylesheets == []
    style = theme._get_theme_css() + look()["css"]
    assert not any(word in style for word in ("@import", "@font-face", "url(http", "url('http", 'url("http'))
