"""atomic_write: an error names the file that was asked for, not the temporary one."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cpl.files import atomic_write, remove_leftovers


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


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    target = tmp_path / ("a" * 50 + ".png")
    prefix = f".{'a' * 40}."
    dead = tmp_path / f"{prefix}abcd_123.part"
    others = [".b.png.abcd_123.part", f"{prefix}abcd_1234.part", f"{prefix}abcd_123.part.png", "a.part"]
    for name in (dead.name, *others):
        (tmp_path / name).write_bytes(b"x")
    with atomic_write(target) as file:
        file.write(b"whole")
        file.flush()
        (living,) = set(tmp_path.iterdir()) - {dead} - {tmp_path / name for name in others}
        remove_leftovers([target, tmp_path / "no folder/b.png"])
        assert living.exists()
        assert not dead.exists()
    assert target.read_bytes() == b"whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([target.name, *others])


def test_a_temporary_file_taken_for_a_leftover_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, raced = fcntl.flock, []

    def lock(handle: int, how: int) -> None:
        if not raced:
            raced.append(handle)
            remove_leftovers([tmp_path / "a.png"])  # another process, between creation and lock
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    write(tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    left = tmp_path / ".a.png.abcd_123.part"
    left.write_bytes(b"x")
    write(tmp_path / "a.png")
    remove_leftovers([tmp_path / "a.png"])  # whose it is cannot be told: it stays
    assert sorted(p.name for p in tmp_path.iterdir()) == [left.name, "a.png"]
