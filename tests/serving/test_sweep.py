"""Which files are deleted while the server runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from cpl.serving import sweep as sweeping
from cpl.serving.sweep import sweep, swept


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_old_files_go_and_kept_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "uploads" / "hash").mkdir(parents=True)
    for name in ("uploads/tmpabc", "uploads/hash/a.png", "uploads/hash/kept.png"):
        (tmp_path / name).write_bytes(b"x")
    written = (tmp_path / "uploads/tmpabc").stat().st_ctime
    os.utime(tmp_path / "uploads/hash/a.png", (0, 0))  # a copy of an old file, not an old copy
    kept = {tmp_path / "uploads/hash/kept.png"}
    sweep(tmp_path, written - 10, kept)
    assert files(tmp_path) == {"uploads/tmpabc", "uploads/hash/a.png", "uploads/hash/kept.png"}
    sweep(tmp_path, time.time() + 10, kept)
    assert files(tmp_path) == {"uploads/hash/kept.png"}


def test_what_cannot_be_deleted_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    unlink = Path.unlink

    def busy(path: Path) -> None:
        if path.name == "a":
            raise PermissionError(1, "not permitted")
        unlink(path)

    monkeypatch.setattr(Path, "unlink", busy)
    sweep(tmp_path, time.time() + 10)
    assert files(tmp_path) == {"a"}
    sweep(tmp_path / "absent", time.time() + 10)


def test_it_goes_on_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "example.png").write_bytes(b"x")
    with swept(tmp_path, every=0.01, age=-10):
        for name in ("first", "second"):
            (tmp_path / name).write_bytes(b"x")
            until = time.monotonic() + 20
            while (tmp_path / name).exists() and time.monotonic() < until:
                time.sleep(0.01)
            assert files(tmp_path) == {"example.png"}  # which was there before
    assert not any(thread.name == "sweeping" for thread in threading.enumerate())


def test_an_hour_is_what_a_visitor_has() -> None:
    """As docs/serving.md says."""
    assert (sweeping.EVERY, sweeping.AGE) == (600, 3600)
