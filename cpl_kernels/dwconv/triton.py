"""dwconv in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

A program takes a block of channels by columns and walks down a strip of rows, so that a plane as small as 16x16 still
fills it. dx is the convolution of dy with the filter turned round, so one kernel computes both. Another sums the
weight's gradient: a program takes one row of the filter, whose taps fit into registers for every kernel size. Its sums
leave as one row for each strip, and the rows are added up in order afterwards: no atomics, the same bits every time.

How launches are found and compiled without a GPU, the docstring of layer_norm2d/triton.py says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels import layout

_WARPS = 4
_ELEMENTS = 256  # of a program, in one row
_MAX_COLUMNS = 128
_ROWS = 32  # of a strip: k - 1 more are read twice


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    if torch.float64 in (x.dtype, weight.dtype) or (bias is not None and bias.dtype == torch.float64):
        return "it has no float64 kernel"
    return None


@triton.jit
def _block(blocks_c, blocks_w, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr):
    """Batch, channels [BLOCK_C, 1] and columns [1, BLOCK_W] of a program, 64-bit: strides reach 2^31."""
    pid = tl.program_id(0)
    column = (pid % blocks_w).to(tl.int64) * BLOCK_W + tl.arange(0, BLOCK_W).to(tl.int64)[None, :]
    channel = (pid // blocks_w % blocks_c).to(tl.int64) * BLOCK_C
    channel += tl.arange(0, BLOCK_C).to(tl.int64)[:, None]
    return (pid // blocks_w // blocks_c).to(tl.int64), channel, column


@triton.jit
def _beside(start, column, width, inside, OFFSET: tl.constexpr):
    """A row that begins at ``start``, OFFSET columns beside the program's own; zeros where there is none."""
    c = column + OFFSET
    return tl.load(start + c, inside & (c >= 0) & (c < width), 0.0).to(tl.float32)


@triton.jit
def convolve_kernel(
    x, x_batch, x_channel,
    y, weight, bias,
    channels, height, width, blocks_c, blocks_w,
    SIZE: tl.constexpr, FLIP: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """x with the filter, or with FLIP the filter turned round: then x is dy and y is dx."""
    batch, channel, column = _block(blocks_c, blocks_w, BLOCK_C, BLOCK_W)
    real = channel < channels
    x_plane = x + batch * x_batch + channel * x_channel
    y_plane = y + (batch * channels + channel) * height * width
    taps = weight + channel * (SIZE * SIZE)
    offset = tl.zeros((BLOCK_C, 1), tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + channel, real, 0.0)
    first = tl.program_id(1) * ROWS
    for row in range(first, tl.minimum(first + ROWS, height)):
        i = tl.cast(row, tl.int64)
        total = tl.zeros((BLOCK_C, BLOCK_W), tl.float32) + offset
        for k in tl.static_range(SIZE):
            r = i + k - SIZE // 2
            inside = real & (r >= 0) & (r < height)
            for j in tl.static_range(SIZE):
                tap = SIZE * SIZE - 1 - (SIZE * k + j) if FLIP else SIZE * k + j
                value = _beside(x_plane + r * width, column, width, inside, j - SIZE // 2)
                total += tl.load(taps + tap, real, 0.0) * value
        tl.store(y_plane + i * width + column, total.to(y.dtype.element_ty), real & (column < width))


@triton.jit
def _add_tap(total, x, start, column, width, inside, J: tl.constexpr, SIZE: tl.constexpr):
    """To the sum of a tap in column J of the filter; a smaller filter has none, and its sum stays."""
    if J < SIZE:
        total += x * _beside(start, column, width, inside, SIZE // 2 - J)
    return total


@triton.jit
def _leave(total, row, real, J: tl.constexpr, SIZE: tl.constexpr):
    if J < SIZE:
        tl.store(row + J, tl.sum(total, 1)[:, None], real)


@triton.jit
def sum_taps_kernel(
    dy, dy_batch, dy_channel,
    x, x_batch, x_channel,
    partial,
    channels, height, width, blocks_c, blocks_w,
    SIZE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One row of the filter over a strip of x: a part of a row of partial [B, strips, blocks of columns, C, taps + 1].

    dweight[i, j] = sum of x[r, c] * dy[r + p - i, c + p - j] with p = SIZE // 2.
    """
    batch, channel, column = _block(blocks_c, blocks_w, BLOCK_C, BLOCK_W)
    real = channel < channels
    x_plane = x + batch * x_batch + channel * x_channel
    dy_plane = dy + batch * dy_batch + channel * dy_channel
    of_filter = tl.program_id(2)
    zero = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    s0, s1, s2, s3, s4, s5, s6, dbias = zero, zero, zero, zero, zero, zero, zero, zero
    first = tl.program_id(1) * ROWS
    for row in range(first, tl.minimum(first + ROWS, height)):
        i = tl.cast(row, tl.int64)
        value = _beside(x_plane + i * width, column, width, real, 0)
        r = i + SIZE // 2 - of_filter
        inside = real & (r >= 0) & (r < height)
        start = dy_plane + r * width
        s0 = _add_tap(s0, value, start, column, width, inside, 0, SIZE)
        s1 = _add_tap(s1, value, start, column, width, inside, 1, SIZE)
        s2 = _add_tap(s2, value, start, column, width, inside, 2, SIZE)
        s3 = _add_tap(s3, value, start, column, width, inside, 3, SIZE)
        s4 = _add_tap(s4, value, start, column, width, inside, 4, SIZE)
        s5 = _add_tap(s5, value, start, column, width, inside, 5, SIZE)
        s6 = _add_tap(s6, value, start, column, width, inside, 6, SIZE)
        dbias += _beside(start, column, width, inside, 0)
    strip = (batch * tl.num_programs(1) + tl.program_id(1)) * blocks_w + tl.program_id(0) % blocks_w
    sums = partial + (strip * channels + channel) * (SIZE * SIZE + 1)
    mine = sums + of_filter * SIZE
    _leave(s0, mine, real, 0, SIZE)
    _leave(s1, mine, real, 1, SIZE)
    _leave(s2, mine, real, 2, SIZE)
    _leave(s3, mine, real, 3, SIZE)
    _leave(s4, mine, real, 4, SIZE)
    _leave(s5, mine, real, 5, SIZE)
    _leave(s6, mine, real, 6, SIZE)
    if of_filter == SIZE // 2:  # here each row of dy was met once
        tl.store(sums + SIZE * SIZE, tl.sum(dbias, 1)[:, None], real)


def _grid(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs and blocks. Columns first: they are read side by side."""
    batch, channels, height, width = x.shape
    block_w = min(triton.next_power_of_2(width), _MAX_COLUMNS)
    block_c = min(_ELEMENTS // block_w, triton.next_power_of_2(channels))
    blocks_c, blocks_w = triton.cdiv(channels, block_c), triton.cdiv(width, block_w)
    constants = {"BLOCK_C": block_c, "BLOCK_W": block_w, "ROWS": _ROWS, "num_warps": _WARPS}
    return (batch * blocks_c * blocks_w, triton.cdiv(height, _ROWS)), {
        "blocks_c": blocks_c, "blocks_w": blocks_w, **constants
    }  # fmt: skip


def _planar(x: Tensor) -> tuple[Any, ...]:
    x = x if layout.is_planar(x) else x.contiguous()
    return x, *x.stride()[:2]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty(x.shape)
    if y.numel():
        grid, blocks = _grid(x)
        convolve_kernel[grid](
            *_planar(x), y, weight.float().contiguous(), None if bias is None else bias.float().contiguous(),
            *x.shape[1:], SIZE=weight.shape[-1], FLIP=False, HAS_BIAS=bias is not None, **blocks,
        )  # fmt: skip
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels = x.shape[:2]
    size = weight.shape[-1]
    dx, weight = x.new_empty(x.shape), weight.float().contiguous()
    if not x.numel():  # a sum over nothing
        return dx, torch.zeros_like(weight), weight.new_zeros(channels)
    grid, blocks = _grid(x)
    up = _planar(dy)
    convolve_kernel[grid](
        *up, dx, weight, None, *x.shape[1:], SIZE=size, FLIP=True, HAS_BIAS=False, **blocks,
    )  # fmt: skip
    partial = weight.new_empty(batch * grid[1] * blocks["blocks_w"], channels, size * size + 1)
    sum_taps_kernel[(*grid, size)](*up, *_planar(x), partial, *x.shape[1:], SIZE=size, **blocks)
    sums = partial.sum(0)  # [C, k * k + 1]
    return dx, sums[:, :-1].reshape(weight.shape), sums[:, -1].contiguous()
