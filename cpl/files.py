"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
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
    # Cut, so that a name of the length that a file system allows can be written too.
    prefix = f".{target.name[:40]}."
    try:
        handle, temporary = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=target.parent)
    except OSError as error:
        raise _of(error, target) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private to the user
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # An error about another file, which the caller was reading meanwhile, keeps that file's name.
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise _of(error, target) from error
        raise


def _of(error: OSError, target: Path) -> OSError:
    return OSError(error.errno, error.strerror or os.strerror(error.errno or 0), str(target))


def _umask() -> int:
    mask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask
