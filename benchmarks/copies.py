"""The machine's own copy bandwidth, at the size that is asked for: what a kernel that only moves memory can reach."""

from __future__ import annotations

import functools
import statistics
import time

import torch

ROUNDS = 15


@functools.cache
def gb_per_s(moved: int) -> float:
    """Of a torch copy that moves ``moved`` bytes, read plus written, into memory that is there already."""
    source = torch.ones(max(1, moved // 8))
    target = torch.empty_like(source)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return moved / statistics.median(times) / 1e9
