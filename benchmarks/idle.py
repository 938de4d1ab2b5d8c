"""Whether the machine is idle enough to measure on.

With other work on the same cores every barrier between threads costs a time slice of milliseconds, and even
paired ratios are nonsense.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

VARIABLE = "CPL_BENCH_BUSY"
MOST_BUSY = 0.1  # share of all cores' time that others may take
SECONDS = 1.0


class BusyError(RuntimeError):
    """Somebody else is using the cores."""


def busy_share(seconds: float = SECONDS, look: Callable[[], list[int]] | None = None) -> float | None:
    """The share of the cores' time that was not idle, over ``seconds``; None where the system does not say."""
    look = look or _ticks
    try:
        before = look()
        time.sleep(seconds)
        after = look()
    except OSError:
        return None
    total = sum(after) - sum(before)
    idle = (after[3] + after[4]) - (before[3] + before[4])  # idle and waiting for a disk
    return 1 - idle / total if total else 0.0


def check() -> None:
    """Raise BusyError on a busy machine, unless CPL_BENCH_BUSY=1 says to measure all the same."""
    share = busy_share()
    if share is not None and share > MOST_BUSY and os.environ.get(VARIABLE) != "1":
        raise BusyError(
            f"the machine is busy ({share:.0%} of its cores' time), so timings would mean nothing; wait until it "
            f"is idle, or set {VARIABLE}=1 to measure all the same (the result will say so)"
        )


def require() -> None:
    """``check`` for a command: its message and exit status 1, no traceback."""
    try:
        check()
    except BusyError as error:
        sys.exit(str(error))


def state() -> str:
    """For the result: that the check was passed, or that it was overridden."""
    return f"not checked to be idle ({VARIABLE}=1)" if os.environ.get(VARIABLE) == "1" else "idle"


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq and steal of all cores together, since the start."""
    return [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
