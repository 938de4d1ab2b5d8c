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
from typing import Any


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """--device alone, for a command that computes in float32."""
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1 (default: auto)"
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype, the same for every command that runs a model."""
    add_device_argument(parser)
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=("fp32", "bf16"),
        help="fp32, or bf16 for half the memory and small differences (default: fp32)",
    )


def add_architecture_argument(parser: argparse.ArgumentParser) -> None:
    """--architecture, for every command that loads a checkpoint."""
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        help="what the checkpoint holds, where the file does not say it and two fit: cplir or promptir",
    )


def told_architecture(args: argparse.Namespace) -> dict[str, str]:
    """What --architecture says, as an argument for `cpl.inference.load.load_model`."""
    return {} if args.architecture is None else {"architecture": args.architecture}


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


def named_degradations(given: list[str]) -> dict[str, str | dict[str, Any]]:
    """The row's name in a table -> specification, of what --degradation was given.

    Raises:
        CplError: two have one name.
    """
    from cpl.errors import CplError

    specs: dict[str, str | dict[str, Any]] = {}
    for spec in given:
        task = _task(spec)
        if task in specs:
            twice = (
                f"{spec} is there twice" if spec == specs[task] else f"{specs[task]} and {spec} are one name"
            )
            raise CplError(f"--degradation: {twice} in the table ({task}); leave one out")
        specs[task] = spec
    return specs


def trained_degradations(info: dict[str, Any]) -> dict[str, str | dict[str, Any]]:
    """Task -> specification that a checkpoint was trained with, or {}.

    Known if a preset of this package trained it whose every degradation is synthetic and which needs no folder
    of the user's: the demonstration's. ``info`` is what `cpl.load_checkpoint` says of the file.
    """
    from cpl.errors import CplError
    from cpl.training import load_preset, preset_names

    name = info.get("preset")
    if name not in preset_names():
        return {}
    try:
        sources = load_preset(str(name)).data.sources
    except CplError:  # it names folders, which only the user knows
        return {}
    known = {task: spec for source in sources for task, spec in getattr(source, "degradations", {}).items()}
    return known if list(known) == info.get("tasks") else {}


def _task(spec: str) -> str:
    """A degradation's specification as a name for the table: noise:sigma=25 -> noise-sigma25."""
    return (
        "".join(c if c.isalnum() or c in "_+." else "" if c == "=" else "-" for c in spec).strip("-") or spec
    )


def named_error(path: str | os.PathLike[str], error: BaseException) -> str:
    """One line about a file that failed, with its name in it, once; a newline in the name is a space."""
    from cpl.cli import one_line

    shown, message = named(path), one_line(error)
    return message if shown in message else f"{shown}: {message}"


def named(path: str | os.PathLike[str]) -> str:
    """A file's name for a line on the terminal; a newline in it is a space."""
    return " ".join(os.fspath(path).split())


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
        self._done = 0

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._done += 1
        self.within(0.0)

    def within(self, share: float) -> None:
        """So much of the next one is done."""
        self._progress.update(self._task, completed=self._done + share)

    def say(self, text: str) -> None:
        """Print a line on stderr without tearing the bar."""
        if self._progress.disable:
            print(text, file=sys.stderr)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
