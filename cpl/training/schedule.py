"""The learning rate as a function of the step.

A pure function: nothing to store in a checkpoint, nothing that can fall out of step on resume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then cosine from ``peak`` to ``floor``, with optional warm restarts.

    ``floor + (peak - floor) * (1 + cos(pi * t / T)) / 2`` within a period of ``T`` steps
    (Loshchilov & Hutter, SGDR, arXiv 1608.03983, eq. 5). Warm-up takes the first ``warmup`` steps
    from ``warmup_floor`` to ``peak`` and counts as part of the first period, as in the all-in-one
    protocols (warm-up 15 of 150 epochs).

    Args:
        peak: learning rate at the top.
        floor: learning rate at the bottom of every period.
        warmup: steps of warm-up.
        periods: length of each period in steps, warm-up included in the first; after the last
            period the rate stays at ``floor``. Empty means constant ``peak`` after warm-up.
        warmup_floor: learning rate at step 0 of the warm-up.
    """

    peak: float
    floor: float = 0.0
    warmup: float = 0.0
    periods: Sequence[float] = ()
    warmup_floor: float = 0.0

    def __call__(self, step: float) -> float:
        """Learning rate for the ``step``-th update, counted from 0."""
        if step < self.warmup:
            # (step + 1): the first update would otherwise have rate 0 and do nothing.
            return self.warmup_floor + (self.peak - self.warmup_floor) * min(1.0, (step + 1) / self.warmup)
        if not self.periods:
            return self.peak
        start = 0.0
        for index, length in enumerate(self.periods):
            begin = start + (self.warmup if index == 0 else 0.0)
            end = start + length
            if step < end:
                turn = (step - begin) / (end - begin)
                return self.floor + (self.peak - self.floor) * (1 + math.cos(math.pi * turn)) / 2
            start = end
        return self.floor
