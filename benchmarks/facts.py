"""What every results file says of itself: a number without it cannot be made again."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import cpl_kernels
from benchmarks import idle
from benchmarks.gpu import machine


def facts() -> dict[str, Any]:
    """Date, versions, the commits of the compiled core and of the checkout around it, core, threads, and whether the
    machine was looked at."""
    report = cpl_kernels.config()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{key: report[key] for key in ("versions", "commit", "native_core", "threads")},
        "checkout": machine.commit(),
        "machine_was": idle.state(),
    }
