"""Old files go while the server runs.

gradio could delete them itself, but it knows of no upload that was broken off, and takes the pictures of the examples
along once one was clicked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Set
from pathlib import Path

EVERY, AGE = 600, 3600  # seconds


@contextlib.contextmanager
def swept(folder: Path, every: float = EVERY, age: float = AGE) -> Iterator[None]:
    """Delete, every ``every`` seconds, the files under ``folder`` that are older than ``age`` seconds.

    Those that lie there at the start are the page's own, and stay.
    """
    kept = frozenset(_files(folder))
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every):
            sweep(folder, time.time() - age, kept)

    thread = threading.Thread(target=work, name="sweeping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def sweep(folder: Path, before: float, kept: Set[Path] = frozenset()) -> None:
    """Delete the files under ``folder``, but for ``kept``, last written before ``before`` (seconds, time.time())."""
    for path in _files(folder):
        # What cannot be looked at or deleted is tried again the next time; others delete here too.
        with contextlib.suppress(OSError):
            # Not mtime, which a copy has from its original.
            if path not in kept and path.lstat().st_ctime < before:
                path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name)
