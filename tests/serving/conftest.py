"""A small model to serve, photos to upload, and a server in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="cpl serve needs the extra [serve]")
pytest.importorskip("imagecodecs", reason="cpl serve needs the extra [serve]")
from PIL import Image

import cpl
from cpl.inference.inspect import Usage, inspect_model, router_fingerprint
from cpl.models.restorer import Restorer


@pytest.fixture(scope="session")
def network() -> Restorer:
    torch.manual_seed(0)
    return cpl.create_model("cplir-tiny").eval()


@pytest.fixture(scope="session")
def checkpoint(network: Restorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    cpl.save_checkpoint(network, path)
    return path


@pytest.fixture(scope="session")
def usage(network: Restorer) -> Usage:
    rng = np.random.default_rng(0)
    photos = [rng.random((16, 16, 3), dtype=np.float32) for _ in range(2)]
    found = inspect_model(network, photos, {"noise": "noise", "low_light": "low_light"}, num_negatives=1)
    return Usage.of(found.images, router_fingerprint(network))


def png(width: int = 40, height: int = 24, **options: object) -> bytes:
    """A colourful picture, as the bytes of a PNG."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 255 - 255 * x / width], -1).astype(np.uint8)
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "PNG", **options)
    return coded.getvalue()


def bomb() -> bytes:
    """A PNG that says it has 60000x60000 pixels, and has none."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


class Served(NamedTuple):
    """A running `cpl serve`, its address, and where its temporary files are."""

    process: subprocess.Popen[str]
    url: str
    temporary: Path


@pytest.fixture(scope="session")
def served(checkpoint: Path, usage: Usage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`cpl serve` on a free port, for all tests that want one; Ctrl-C must end it cleanly when they are done."""
    pytest.importorskip("gradio", reason="cpl serve needs the extra [serve]")
    temporary = tmp_path_factory.mktemp("tmp")
    table = tmp_path_factory.mktemp("usage") / "usage.json"
    usage.save(table)
    command = [
        sys.executable,
        "-m",
        "cpl",
        "serve",
        "--checkpoint",
        checkpoint,
        "--port",
        "0",
        "--usage",
        table,
    ]
    command += ["--upload", "300KB", "--megapixels", "0.2", "--degradation", "noise:sigma=50", "low_light"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield Served(process, re.findall(r"http://\S+", line_with(process, "serving"))[0], temporary)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert said.endswith("stopped\n")
        # Other tracebacks are gradio's, of hostile requests; the end of the server is none.
        assert not any(
            word in said for word in ("KeyboardInterrupt", "CancelledError", "Exception in ASGI")
        ), said
        assert os.listdir(temporary) == []  # what was uploaded is gone
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def line_with(process: subprocess.Popen[str], word: str, seconds: float = 120) -> str:
    """The process's next line that has ``word`` in it; fails the test if none comes."""
    assert process.stdout is not None
    seen, until = "", time.monotonic() + seconds
    while time.monotonic() < until:
        if select.select([process.stdout], [], [], 1)[0]:
            line = process.stdout.readline()
            seen += line
            if word in line:
                return line
            if not line:
                break
    pytest.fail(f"no line with {word!r}; the process said:\n{seen}")
