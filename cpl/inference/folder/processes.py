"""The processes of `accelerate launch` or `torchrun`: each takes its share of the jobs.

Both launchers say who is who in the environment (RANK, WORLD_SIZE, LOCAL_RANK); without these there is
one process, and nothing here does anything. What the processes tell each other (the jobs before the
work, the report after it) goes through gloo, on GPUs too: it is a few kilobytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cpl.errors import CplError
from cpl.inference.folder.jobs import Job
from cpl.inference.folder.pipeline import Report

Anything = TypeVar("Anything")

# The first to be done waits for the last, whose images may be large; one that dies is noticed at once.
_PATIENCE = timedelta(days=7)


class Processes:
    """``with Processes() as processes``: this process among those that were launched together.

    Attributes:
        rank, count: this process's number from 0, and how many there are.
        is_main: the one that plans and reports.
        of: " (process 2 of 4)" to say whose report it is, or nothing where there is one.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.count > 1 else 0
        self.is_main = self.rank == 0
        self.of = f" (process {self.rank + 1} of {self.count})" if self.count > 1 else ""

    def __enter__(self) -> Processes:
        if self.count > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.count > 1:
            dist.destroy_process_group()

    def device(self, device: str) -> str:
        """What "auto" and "cuda" mean to this process: a GPU of its own.

        Raises:
            CplError: one GPU was asked for, and there are several processes.
        """
        if self.count == 1 or device == "cpu":
            return device
        if device not in ("auto", "cuda"):
            raise CplError(
                f"--device {device} for {self.count} processes would put all of them on one; leave --device out"
            )
        if device == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"

    def agreed(self, make: Callable[[], Anything]) -> Anything:
        """What ``make`` gives in the main process, for all; none goes on before it is there.

        Raises:
            Whatever ``make`` does, in the main process; SystemExit(2) in the others, which say nothing.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None]
        try:
            if self.is_main:
                box = [(make(),)]
        finally:
            dist.broadcast_object_list(box)
        if box[0] is None:
            raise SystemExit(2)
        return box[0][0]

    def share(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """This process's jobs: every ``count``-th, so that all move through a folder side by side."""
        return jobs[self.rank :: self.count]

    def together(self, report: Report) -> Report:
        """The reports of all processes as one, in every process; it waits for the last."""
        if self.count == 1:
            return report
        reports: list[Any] = [None] * self.count
        dist.all_gather_object(reports, (report.written, _named(report), report.finished, report.skipped))
        whole = Report()
        for written, failed, finished, skipped in reports:
            whole.written += written
            whole.failed += failed
            whole.finished += finished
            whole.skipped += skipped
        return whole


def _named(report: Report) -> list[tuple[Any, Exception]]:
    """An error of any kind travels as its text: not every exception survives pickling."""
    return [(source, CplError(str(error))) for source, error in report.failed]
