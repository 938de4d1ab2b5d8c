"""cpl restore on folders that hold what they should not, on disks that refuse, and by several processes."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("PIL", reason="cpl restore needs the extra [restore]")
pytest.importorskip("rich", reason="cpl restore needs the extra [restore]")
pytest.importorskip("imagecodecs", reason="cpl restore needs the extra [restore]")
from PIL import Image

from cpl.inference import load
from cpl.inference.folder import pipeline
from tests.cli.test_restore import names, one_error, photo

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda path, device: (nn.Identity(), {}))


def mount(options: str, place: Path) -> None:
    """A file system of its own for a test, or a skip that says why there is none."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs the right to mount a tmpfs ({made.stderr.strip()})")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount(8) for a disk of its own")
    place = tmp_path / "disk"
    mount("size=64k", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def bomb(path: Path, side: int, bits: int) -> None:
    """A PNG of a few bytes whose header claims ``side`` squared pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, bits, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.usefixtures("identity")
def test_hostile_files_are_named_each_and_the_rest_go_on(run: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = photo(source / "a.png").read_bytes()
    photo(source / "m.jpg", 1)
    photo(source / "z.png", 2)
    bomb(source / "bomb8.png", 60000, 8)
    bomb(source / "bomb16.png", 60000, 16)
    with zipfile.ZipFile(source / "archive.png", "w") as archive:
        archive.writestr("a.png", good)
    (source / "empty.png").touch()
    (source / "cut.png").write_bytes(good[: len(good) // 2])
    (source / "cut.jpg").write_bytes((source / "m.jpg").read_bytes()[:300])
    (source / "header.png").write_bytes(good[:20])
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (source / "loop.png").symlink_to(source / "loop.png")
    os.mkfifo(source / "pipe.png")  # which would be waited for without end
    (source / "folder.png").mkdir()  # a folder, and --recursive is not given: no file to fail
    photo(source / "folder.png/inside.png")
    expected = {
        "archive.png": "not an image",
        "bomb8.png": "refused",
        "bomb16.png": "refused",
        "cut.jpg": "damaged or incomplete",
        "cut.png": "damaged or incomplete",
        "empty.png": "empty file (0 bytes)",
        "gone.png": "No such file",
        "header.png": "damaged or incomplete",
        "loop.png": "symbolic links",
        "pipe.png": "not a file",
    }
    result = run("restore", source, "--checkpoint", "x", "--output", out)
    assert result.status == 1
    errors, summary = result.err.splitlines()[:-1], result.err.splitlines()[-1]
    assert summary == f"restored 3 of 13 images to {out} (10 failed)"
    found = {}
    for line in errors:
        assert line.startswith(f"error: {source}/")
        name, _, message = line.removeprefix(f"error: {source}/").partition(":")
        found[name] = message
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name], name
    for name in ("bomb8.png", "bomb16.png"):
        assert "3600000000 pixels" in found[name]
        assert "cut it up" in found[name]
    assert names(out) == ["a.png", "m.jpg", "z.png"]
    again = run("restore", source, "--checkpoint", "x", "--output", out, "--resume")
    assert again.status == 1  # what failed is tried again, and is still not there
    assert again.err.splitlines()[:-1] == errors
    assert again.err.splitlines()[-1] == f"restored 0 of 13 images to {out} (3 finished before, 10 failed)"


@pytest.mark.usefixtures("identity")
def test_a_file_that_may_not_be_read(run: Any, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in/b.png").chmod(0)
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    with as_nobody(tmp_path):
        result = run("restore", tmp_path / "in", "--checkpoint", "x", "--output", tmp_path / "out")
    assert result.status == 1
    assert f"error: {tmp_path / 'in/b.png'}: Permission denied" in result.err.splitlines()
    assert names(tmp_path / "out") == ["a.png", "c.png"]


class as_nobody:
    """For root, whom permissions do not bind: without root's rights to files. Others are bound anyway."""

    def __init__(self, tmp_path: Path) -> None:
        self._path = tmp_path

    def __enter__(self) -> None:
        self._root = os.geteuid() == 0
        if self._root:
            for folder in (self._path, *self._path.parents):  # pytest's are private to root
                if not folder.stat().st_mode & 0o001:
                    folder.chmod(0o711)
            (self._path / "in").chmod(0o755)
            os.setresuid(NOBODY, NOBODY, 0)

    def __exit__(self, *_: object) -> None:
        if self._root:
            os.setresuid(0, 0, 0)


@pytest.mark.usefixtures("identity")
def test_an_output_folder_that_may_not_be_written_to(run: Any, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    arguments = ("restore", tmp_path / "in", "--checkpoint", "x", "--output")
    with as_nobody(tmp_path):
        one_error(run(*arguments, out), out, "cannot be written to", "choose another")
        one_error(run(*arguments, out / "below"), out / "below", "Permission denied")
    assert names(out) == []


@pytest.mark.usefixtures("identity")
def test_a_disk_that_is_mounted_read_only(run: Any, disk: Path, tmp_path: Path) -> None:
    photo(tmp_path / "in/a.png")
    (disk / "out").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    arguments = ("restore", tmp_path / "in", "--checkpoint", "x", "--output")
    one_error(run(*arguments, disk / "out"), disk / "out", "cannot be written to")
    one_error(run(*arguments, disk / "new"), disk / "new", "Read-only file system")


@pytest.mark.usefixtures("identity")
def test_a_disk_that_fills_up_and_is_emptied(run: Any, disk: Path, tmp_path: Path) -> None:
    """A real one: what stands on it is whole, the rest is said, and --resume does that and no more."""
    for number in range(8):
        photo(tmp_path / f"in/{number}.png", number, size=(64, 64))  # 12 KB each, which no PNG can make less
    out = disk / "out"
    arguments = ("restore", tmp_path / "in", "--checkpoint", "x", "--output", out)
    result = run(*arguments)
    assert result.status == 1
    written = names(out)
    assert 0 < len(written) < 7
    error, summary = result.err.splitlines()
    assert (
        error == f"error: {tmp_path}/in/{len(written)}.png: {out}/{len(written)}.png: No space left on device"
    )
    untried = 7 - len(written)
    assert summary == f"restored {len(written)} of 8 images to {out} (1 failed, {untried} not tried)"
    for name in written:
        with Image.open(out / name) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / "in" / name)))
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    result = run(*arguments, "--resume")
    assert (
        result.out == f"restored {8 - len(written)} of 8 images to {out} ({len(written)} finished before)\n"
    )
    assert len(names(out)) == 8


def test_bf16_through_a_folder(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / f"in/{number}.png", number, size=(16, 24))
    outputs = {}
    for dtype in ("fp32", "bf16"):
        out = tmp_path / dtype
        arguments = ("restore", tmp_path / "in", "--checkpoint", checkpoint, "--output", out)
        assert run(*arguments, "--dtype", dtype).status == 0
        outputs[dtype] = np.stack([np.asarray(Image.open(out / f"{n}.png"), np.float32) for n in range(3)])
    difference = np.abs(outputs["bf16"] - outputs["fp32"])
    assert 0 < difference.max() <= 8  # of 255: bf16 has 8 bits, and fresh weights change the picture little
    one_error(run(*arguments, "--dtype", "bf16", "--memory", "1GB"), "--memory", "--dtype bf16")


@pytest.mark.usefixtures("identity")
def test_signals_end_in_good_order(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, as a batch system sends it, and the Ctrl-C that a launcher passes on while that end is under way."""
    for number in range(5):
        photo(tmp_path / f"in/{number}.png", number)
    before, calls, halt = signal.getsignal(signal.SIGTERM), [], pipeline._Line._halt

    def forward(self: nn.Identity, image: torch.Tensor) -> torch.Tensor:
        calls.append(image)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return image

    def halt_and_again(self: pipeline._Line) -> None:
        halt(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(nn.Identity, "forward", forward)
    monkeypatch.setattr(pipeline._Line, "_halt", halt_and_again)
    out = tmp_path / "out"
    result = run("restore", tmp_path / "in", "--checkpoint", "x", "--output", out)
    assert result.status == 130
    assert result.err.startswith(f"interrupted: restored 2 of 5 images to {out} (3 not tried)")
    assert names(out) == ["0.png", "1.png"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_two_processes_share_a_folder(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    """As `accelerate launch` and `torchrun` start them, on CPU."""
    for number in range(1, 8):
        photo(tmp_path / f"in/{number}.png", number)
    (tmp_path / "in/4.png").write_text("no picture")  # of the second process's share
    arguments = ("restore", tmp_path / "in", "--checkpoint", checkpoint, "--output")
    both, one = tmp_path / "both", tmp_path / "one"
    launcher = [
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "cpl", *arguments, both],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("4.png: not an image") == 1
    # The main process alone reports, for both and when both are done.
    assert result.stderr.count(f"restored 6 of 7 images to {both} (1 failed)") == 1
    assert (result.stdout + result.stderr).count("restored ") == 1
    assert "exitcode  : 1" in result.stderr  # torchrun's account of ours
    assert run(*arguments, one).status == 1
    assert {n: (both / n).read_bytes() for n in names(both)} == {
        n: (one / n).read_bytes() for n in names(one)
    }
    photo(tmp_path / "in/4.png", 4)
    # By one process what two began: the records of both are in one file.
    assert run(*arguments, both, "--resume").out == f"restored 1 of 7 images to {both} (6 finished before)\n"
