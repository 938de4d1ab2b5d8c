"""What a kernel that only moves memory can reach: the machine's own copy bandwidth, and copies in a kernel's place."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

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


def move(read: Sequence[Tensor], written: Tensor) -> None:
    """Read every element of ``read`` once and write every element of ``written`` once, copying as far as both go."""
    target = written.view(-1)
    for source in (x.reshape(-1) for x in read):
        count = min(len(source), len(target))
        target[:count].copy_(source[:count])
        if count < len(source):
            source[count:].sum()
        target = target[count:]
    target.zero_()
