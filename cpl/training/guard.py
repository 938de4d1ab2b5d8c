"""Losses and gradients that are not finite: the step is skipped and counted, and a limit ends the run."""

from __future__ import annotations

from cpl.errors import CplError


class NonFiniteGuard:
    """Counts skipped steps.

    Args:
        limit: skipped steps in all that end the run.
        limit_in_a_row: skipped steps one after another that end the run.
    """

    def __init__(self, limit: int, limit_in_a_row: int) -> None:
        self.limit, self.limit_in_a_row = limit, limit_in_a_row
        self.total = self.in_a_row = 0

    def passed(self) -> None:
        """A step was finite."""
        self.in_a_row = 0

    def skipped(self, step: int, what: str, newest: str) -> str:
        """A step was not; returns the line to show, or raises CplError at a limit."""
        self.total += 1
        self.in_a_row += 1
        line = f"step {step}: {what} is not finite; step skipped ({self.total} so far)"
        if self.total >= self.limit or self.in_a_row >= self.limit_in_a_row:
            which = "max_nonfinite_in_a_row" if self.in_a_row >= self.limit_in_a_row else "max_nonfinite"
            raise CplError(
                f"training stopped at step {step}: {what} was not finite in {self.total} steps, {self.in_a_row} "
                f"in a row ({which}={getattr(self, _FIELDS[which])}); lower optimizer.lr or clip_norm, or use "
                f"mixed_precision=no, and look at the data; {newest}"
            )
        return line

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, int]) -> None:
        """Put back what :meth:`state` gave."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]


_FIELDS = {"max_nonfinite": "limit", "max_nonfinite_in_a_row": "limit_in_a_row"}
