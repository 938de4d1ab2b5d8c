"""Without a graph a block needs its widest maps a strip of rows at a time only.

Between the two 1x1 convolutions of the feed-forward network lie 2h channels, 5.3 times the block's own, and before
attention's 3x3 convolution 3C. Both are made of pixels and their neighbours, so they are worked out for some rows, with
one more on each side for the 3x3 convolution, and dropped: at full size neither exists. What attention adds up over
the whole image, q, k and v, is kept whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cpl.nn.attention import MDTA
from cpl.nn.feed_forward import GDFN, gate
from cpl.nn.norm import LayerNorm2d
from cpl_kernels import channel_attention, dwconv

# In bytes: from what size of the widest map on a block works in strips, and the size of a strip of it. On a CPU strips
# stay in the cache; on a GPU they must be worth their launches.
_LARGE = {"cpu": 2**26}
_STRIP = {"cpu": 2**23}
_LARGE_ELSEWHERE, _STRIP_ELSEWHERE = 2**30, 2**27
_LEAST_ROWS = 16  # two more are computed for each strip


@dataclass(frozen=True)
class Strip:
    """Rows first to end, and low to high with one more on each side where there is one."""

    first: int
    end: int
    low: int
    high: int

    def inner(self, rows: Tensor) -> Tensor:
        """Of rows low to high those from first to end."""
        return rows[:, :, self.first - self.low : self.end - self.low]


def rows_of_a_strip(shape: Sequence[int], widest: int, item: int, device: torch.device) -> int | None:
    """How many rows of a map [B, C, H, W] at a time, where another of ``widest`` channels is made of it; None where all
    are best at once. ``item``: bytes of a number."""
    batch, _, height, width = shape
    row = batch * widest * width * item
    if row * height < _LARGE.get(device.type, _LARGE_ELSEWHERE):
        return None
    rows = max(_LEAST_ROWS, _STRIP.get(device.type, _STRIP_ELSEWHERE) // row)
    return rows if rows < height else None


def attention_in_strips(x: Tensor, norm: LayerNorm2d, attn: MDTA, rows: int) -> Tensor:
    """x + attn(norm(x)), for x [B, C, H, W]."""
    whole: Tensor | None = None
    for strip in _strips(x.shape[2], rows):
        qkv = attn.qkv(norm(x[:, :, strip.low : strip.high]))
        qkv = strip.inner(dwconv(qkv, attn.qkv_dwconv.weight))
        if whole is None:
            whole = qkv.new_empty(qkv.shape[0], qkv.shape[1], *x.shape[2:])
        whole[:, :, strip.first : strip.end] = qkv
    assert whole is not None
    mixed = channel_attention(whole, attn.temperature)
    del whole
    return x + attn.project_out(mixed)


def feed_forward_in_strips(x: Tensor, norm: LayerNorm2d, ffn: GDFN, rows: int) -> Tensor:
    """x + ffn(norm(x)), for x [B, C, H, W]."""
    whole: Tensor | None = None
    for strip in _strips(x.shape[2], rows):
        gated = gate(ffn.project_in(norm(x[:, :, strip.low : strip.high])), ffn.dwconv.weight)
        added = x[:, :, strip.first : strip.end] + ffn.project_out(strip.inner(gated).contiguous())
        if whole is None:
            whole = torch.empty_like(x, dtype=added.dtype)
        whole[:, :, strip.first : strip.end] = added
    assert whole is not None
    return whole


def _strips(height: int, rows: int) -> Iterator[Strip]:
    for first in range(0, height, rows):
        end = min(first + rows, height)
        yield Strip(first, end, max(first - 1, 0), min(end + 1, height))
