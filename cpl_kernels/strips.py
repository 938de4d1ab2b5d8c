"""Without a graph a half of a transformer block computes its widest maps a strip of rows at a time.

Before attention's 3x3 convolution lie 3C channels, and between the feed-forward network's two 1x1 convolutions 2h, 5.3
times the half's own. Both are made of pixels and their neighbours. A strip has as many more rows on each side as the
convolution reaches, so that neither map exists at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# In bytes: from what size of the widest map on a half works in strips, and the size of a strip of it. On a CPU strips
# stay in the cache; on a GPU they must be worth their launches.
_LARGE = {"cpu": 2**26}
_STRIP = {"cpu": 2**23}
_LARGE_ELSEWHERE, _STRIP_ELSEWHERE = 2**30, 2**27
_LEAST_ROWS = 16  # a 3x3 convolution computes two more for each strip


@dataclass(frozen=True)
class Strip:
    """Rows first to end, and low to high with neighbours on each side where there are some."""

    first: int
    end: int
    low: int
    high: int

    def with_neighbours(self, x: Tensor) -> Tensor:
        """Rows low to high of a whole map."""
        return x[:, :, self.low : self.high]

    def own(self, x: Tensor) -> Tensor:
        """Rows first to end of a whole map."""
        return x[:, :, self.first : self.end]

    def inner(self, rows: Tensor) -> Tensor:
        """Rows first to end of ``rows``, which are those from low to high."""
        return rows[:, :, self.first - self.low : self.end - self.low]


def rows_of_a_strip(shape: Sequence[int], widest: int, item: int, device: torch.device) -> int | None:
    """How many rows of a map [B, C, H, W] are computed at a time, if another one of ``widest`` channels is made of it.

    Args:
        item: bytes of a number.

    Returns:
        The number of rows, or None if all are best computed at once.
    """
    batch, _, height, width = shape
    row = batch * widest * width * item
    if row * height < _LARGE.get(device.type, _LARGE_ELSEWHERE):
        return None
    rows = max(_LEAST_ROWS, _STRIP.get(device.type, _STRIP_ELSEWHERE) // row)
    return rows if rows < height else None


def works_in_strips(shape: Sequence[int], project_in: Sequence[int], device: torch.device) -> bool:
    """Whether a transformer block computes its widest maps in strips of rows where no gradient is taken.

    It then holds none of them at full size, which estimates of memory must know.

    Args:
        shape: [B, C, H, W] of the block's input, in float32.
        project_in: the shape [2h, C, 1, 1] of the weight that makes the widest map.
        device: where it runs.
    """
    return rows_of_a_strip(shape, project_in[0], 4, device) is not None


def strips(height: int, rows: int, reach: int) -> Iterator[Strip]:
    """Those of a map of ``height`` rows, from the top; ``reach``: how many rows on each side a result is made of."""
    for first in range(0, height, rows):
        end = min(first + rows, height)
        yield Strip(first, end, max(first - reach, 0), min(end + reach, height))
