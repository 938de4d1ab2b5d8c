"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name ``path`` only once it is complete and on disk.

    The bytes go to a temporary file in the same folder (a rename across file systems is a copy,
    and a copy can be seen half-done). On any failure, Ctrl-C included, nothing is left behind and
    an older file of that name stays as it was.

    Raises:
        OSError: the file cannot be written; it names ``path``, never the temporary file.
    """
    target = Path(path)
    try:
        handle, temporary = _locked_temporary(target)
    except OSError as error:
        raise _of(error, target) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private to the user
            os.replace(temporary, target)  # while the lock is held: see remove_leftovers
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # An error about another file, which the caller was reading meanwhile, keeps that file's name.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise _of(error, target) from error
        raise


def remove_leftovers(targets: Iterable[str | os.PathLike[str]]) -> None:
    """Delete the temporary files that a killed process left of `atomic_write` to any of ``targets``.

    Those of a process that still writes are locked, and stay. What cannot be looked at or deleted stays too: a
    leftover takes room on the disk and does no other harm.
    """
    prefixes: dict[Path, set[str]] = {}
    for target in map(Path, targets):
        prefixes.setdefault(target.parent, set()).add(_prefix(target))
    for folder, ours in prefixes.items():
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                found = _TEMPORARY.fullmatch(name)
                if found and found[1] in ours:
                    with contextlib.suppress(OSError):
                        _remove_unlocked(folder / name)


# mkstemp puts eight characters between what we give it.
_TEMPORARY = re.compile(r"(\..*\.)[a-z0-9_]{8}\.part", re.DOTALL)


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}."  # cut, so that a name of the length that a file system allows can be written too


def _locked_temporary(target: Path) -> tuple[int, str]:
    while True:
        handle, temporary = tempfile.mkstemp(prefix=_prefix(target), suffix=".part", dir=target.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks; remove_leftovers cannot lock there either
            return handle, temporary
        if os.path.exists(temporary):
            return handle, temporary
        os.close(handle)  # another process took it for a leftover before it was locked


def _remove_unlocked(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)


def _of(error: OSError, target: Path) -> OSError:
    return OSError(error.errno, error.strerror or os.strerror(error.errno or 0), str(target))


def _umask() -> int:
    mask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask
