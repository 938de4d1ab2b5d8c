"""cpl serve: what is refused before it starts, and what it is started with. The page itself: tests/serving."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="cpl serve needs the extra [serve]")

import cpl
from cpl.inference import load
from cpl.inference.inspect import Usage, inspect_model, router_fingerprint
from cpl.serving import server
from tests.cli.conftest import one_error


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server was started with, instead of starting it."""
    seen: list[Any] = []

    def serve(session: Any, listening: socket.socket, about: str, ready: Any) -> bool:
        seen.extend([session, listening.getsockname(), about])
        ready()
        listening.close()
        return False

    monkeypatch.setattr(server, "serve", serve)
    return seen


def test_what_it_is_started_with(run: Any, checkpoint: Path, served: list[Any]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = run("serve", "--checkpoint", checkpoint, "--port", 0)
    session, address, about = served
    assert (result.status, result.err) == (0, "")
    assert result.out == f"serving http://127.0.0.1:{address[1]} (Ctrl-C stops it)\nstopped\n"
    assert list(session.degradations) == ["noise", "blur", "rain", "haze", "low_light", "snow", "jpeg"]
    limits = session.limits
    assert (limits.upload_bytes, limits.pixels, limits.memory) == (32 * 2**20, 12_000_000, 2 * 2**30)
    assert (session.usage, session.dtype) == (None, "fp32")
    assert checkpoint.name in about
    assert str(checkpoint.parent) not in about
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_at_work_does_not_end_the_process_badly(
    run: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    def busy(session: Any, listening: socket.socket, about: str, ready: Any) -> bool:
        listening.close()
        return True

    monkeypatch.setattr(server, "serve", busy)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="0"):
        run("serve", "--checkpoint", checkpoint, "--port", 0)


def test_options(run: Any, checkpoint: Path, served: list[Any]) -> None:
    options = ("--upload", "1MB", "--megapixels", 0.5, "--memory", "64MB", "--dtype", "bf16")
    result = run(
        "serve", "--checkpoint", checkpoint, "--port", 0, *options, "--degradation", "noise:sigma=25"
    )
    assert result.status == 0
    limits = served[0].limits
    assert (limits.upload_bytes, limits.pixels, limits.memory) == (2**20, 500_000, 64 * 2**20)
    assert dict(served[0].degradations) == {"noise-sigma25": "noise:sigma=25"}
    assert served[0].dtype == "bf16"


def test_the_largest_photo_is_what_pillow_takes(run: Any, checkpoint: Path, served: list[Any]) -> None:
    assert run("serve", "--checkpoint", checkpoint, "--port", 0, "--megapixels", 178).status == 0
    pixels = served[0].limits.pixels
    assert pixels <= 2 * Image.MAX_IMAGE_PIXELS < pixels + 10**6


def test_the_demonstration_s_degradations(run: Any, served: list[Any], tmp_path: Path) -> None:
    tasks = ["noise", "blur", "rain", "haze", "low_light"]
    torch.manual_seed(0)
    cpl.save_checkpoint(
        cpl.create_model("cplir-tiny"), tmp_path / "m.safetensors", preset="demo", tasks=tasks
    )
    assert run("serve", "--checkpoint", tmp_path / "m.safetensors", "--port", 0).status == 0
    assert served[0].degradations["low_light"] == "low_light:scale=0.015..0.025,gamma=1"


def test_others_on_the_network_are_warned_of(run: Any, checkpoint: Path, served: list[Any]) -> None:
    result = run("serve", "--checkpoint", checkpoint, "--port", 0, "--host", "0.0.0.0")
    assert result.status == 0
    assert result.err.startswith("warning: everyone who can reach this machine")
    assert served[1][0] == "0.0.0.0"


def test_usage_must_be_of_this_model(run: Any, checkpoint: Path, served: list[Any], tmp_path: Path) -> None:
    model, _ = cpl.load_checkpoint(checkpoint)
    torch.manual_seed(1)
    other = cpl.create_model("cplir-tiny")
    for network, name in ((model, "own"), (other, "other")):
        found = inspect_model(network, [np.zeros((8, 8, 3), np.float32)], {"noise": "noise"}, num_negatives=1)
        Usage.of(found.images, router_fingerprint(network)).save(tmp_path / name)
    assert run("serve", "--checkpoint", checkpoint, "--port", 0, "--usage", tmp_path / "own").status == 0
    assert served[0].usage is not None
    one_error(
        run("serve", "--checkpoint", checkpoint, "--port", 0, "--usage", tmp_path / "other"), "another model"
    )
    one_error(
        run("serve", "--checkpoint", checkpoint, "--port", 0, "--usage", tmp_path / "absent"), "no such file"
    )


def test_refusals(
    run: Any, checkpoint: Path, served: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_error(run("serve"), "--checkpoint", "make demo")
    one_error(run("serve", "--checkpoint", tmp_path / "absent", "--port", 0), tmp_path / "absent")
    command = ("serve", "--checkpoint", checkpoint)
    one_error(run(*command, "--port", 0, "--degradation", "fog"), "fog")

    def load_nothing(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(load, "load_model", load_nothing)
    one_error(run(*command, "--port", 99999), "--port", "99999")
    one_error(run(*command, "--megapixels", 0), "--megapixels", "got 0")
    # Of 179 million pixels Pillow refuses the header.
    one_error(run(*command, "--megapixels", 179), "--megapixels", "at most 178, got 179", "Pillow")
    one_error(run(*command, "--upload", "much"), "--upload", "'much'")
    one_error(run(*command, "--memory", "much"), "--memory", "'much'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        one_error(run(*command, "--port", taken.getsockname()[1]), "in use", "--port")
    monkeypatch.setitem(sys.modules, "gradio", None)  # what an absent package looks like to an import
    one_error(run(*command), "cpl serve needs gradio", "pip install 'cpl-kernels[serve]'")
    assert served == []
