"""atomic_write: an error names the file that was asked for, not the temporary one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cpl.files import atomic_write


def write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"x")


def test_errors_name_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    for target, kind in (
        (tmp_path / "no/a.png", FileNotFoundError),
        (tmp_path / "folder", IsADirectoryError),
    ):
        with pytest.raises(kind) as caught:
            write(target)
        assert (caught.value.filename, caught.value.filename2) == (str(target), None)
        assert ".part" not in str(caught.value)

    def full(handle: int) -> None:  # a write that fails names no file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as full_disk:
        write(tmp_path / "a.png")
    assert full_disk.value.filename == str(tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_another_files_error_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.png"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")
    assert not list(tmp_path.iterdir())


def test_a_name_of_the_greatest_length(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 255))
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]
