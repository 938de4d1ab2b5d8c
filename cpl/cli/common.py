"""What several commands share: the options of running a model, and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype, the same for every command that runs a model."""
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 (default: auto)"
    )
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "bf16"),
        help="fp32, or bf16 for half the memory and small differences (default: fp32)",
    )


def check_writable(path: str, option: str) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        CplError: it is a folder, or its folder is missing or not writable.
    """
    from cpl.errors import CplError

    file = Path(path)
    folder = file.absolute().parent
    if file.is_dir():
        raise CplError(f"{option} {path}: is a folder; name a file in it")
    if not folder.is_dir():
        raise CplError(f"{option} {path}: there is no folder {file.parent}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CplError(f"{option} {path}: the folder {file.parent} cannot be written to; choose another")


def named_error(path: str | os.PathLike[str], error: BaseException) -> str:
    """One line about a file that failed, with its name in it, once; a newline in the name is a space."""
    from cpl.cli import one_line

    name, message = " ".join(os.fspath(path).split()), one_line(error)
    return message if name in message else f"{name}: {message}"


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """KeyboardInterrupt at the first Ctrl-C or SIGTERM (a batch system's), and none at those that follow.

    A launcher of several processes passes on the Ctrl-C that they have had from the terminal: a second one
    must not disturb the orderly end that the first one began.
    """
    received = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = True
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A shell has what it starts with `&` ignore Ctrl-C, and so it stays.
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        taken = []
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


class ProgressBar:
    """A rich progress bar with time left, on stderr; nothing is drawn when that is not a terminal."""

    def __init__(self, label: str, total: int | None, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not (show and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._progress.advance(self._task)

    def say(self, text: str) -> None:
        """Print a line on stderr without tearing the bar."""
        if self._progress.disable:
            print(text, file=sys.stderr)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
