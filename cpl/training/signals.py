"""Ctrl-C and SIGTERM during training: noted, and acted on at the step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """``with StopSignals() as stop``: ``stop.received`` is the signal's number, or 0.

    A second signal raises KeyboardInterrupt at once, for whoever will not wait for the step.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number


def ignore_interrupt(_: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, and theirs is not to stop the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
