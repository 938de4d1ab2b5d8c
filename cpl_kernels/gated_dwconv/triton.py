"""gated_dwconv in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

A program takes a block of channels by columns and walks down a strip of rows, so that a plane as small as 16x16
still fills it. Backward it convolves again from x at each row and at the columns beside its own, and keeps the
gradient of the last three rows in registers: dx comes out one row behind, and the gradient of the convolution
never exists in memory. A strip begins a row early and ends a row late for that. Its sums of dweight and dbias
leave as one row, and the rows are added up in order afterwards: no atomics, the same bits every time.

How launches are found and compiled without a GPU, the docstring of layer_norm2d/triton.py says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels import layout

# On an H200 the backward takes three times as long as that of the CUDA C++ kernels. A thread has one element of a row
# there, beside 20 sums and 18 gradients.
_WARPS = 4
_FORWARD_ELEMENTS = 256
_BACKWARD_ELEMENTS = 128
_MAX_COLUMNS = 128
_ROWS = 32  # of a strip: two more are computed twice


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
def _columns(column, width, real):
    """The columns from two before to two behind a program's own, and where there are such."""
    return (
        (column - 2, column - 1, column, column + 1, column + 2),
        (
            real & (column >= 2) & (column < width + 2),
            real & (column >= 1) & (column < width + 1),
            real & (column < width),
            real & (column < width - 1),
            real & (column < width - 2),
        ),
    )


@triton.jit
def _of_channel(weight, bias, channel, real, HAS_BIAS: tl.constexpr):
    """The nine taps [BLOCK_C, 1] of each channel, and its bias."""
    at = weight + channel * 9
    taps = (
        tl.load(at, real, 0.0), tl.load(at + 1, real, 0.0), tl.load(at + 2, real, 0.0),
        tl.load(at + 3, real, 0.0), tl.load(at + 4, real, 0.0), tl.load(at + 5, real, 0.0),
        tl.load(at + 6, real, 0.0), tl.load(at + 7, real, 0.0), tl.load(at + 8, real, 0.0),
    )  # fmt: skip
    if HAS_BIAS:
        return taps, tl.load(bias + channel, real, 0.0)
    return taps, tl.zeros(channel.shape, tl.float32)


@triton.jit
def _convolve(plane, taps, bias, row, columns, masks, height, width, SHIFT: tl.constexpr):
    """At a row, SHIFT columns beside the program's own (-1, 0 or 1); zeros outside the image."""
    total = bias
    for k in tl.static_range(3):
        r = row + k - 1
        valid = (r >= 0) & (r < height)
        start = plane + r * width
        for j in tl.static_range(3):
            x = tl.load(start + columns[SHIFT + j + 1], valid & masks[SHIFT + j + 1], 0.0).to(tl.float32)
            total += taps[3 * k + j] * x
    return total


@triton.jit
def _below(a):
    """P(X <= a) of the normal distribution."""
    return 0.5 * (1.0 + tl.math.erf(a * 0.7071067811865476))


@triton.jit
def forward_kernel(
    x, x_batch, x_channel,
    y, weight, bias,
    channels, height, width, blocks_c, blocks_w,
    GELU: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    batch, channel, column = _block(blocks_c, blocks_w, BLOCK_C, BLOCK_W)
    real = channel < channels
    columns, masks = _columns(column, width, real)
    a_plane = x + batch * x_batch + channel * x_channel
    g_plane = x + batch * x_batch + (channel + channels) * x_channel
    y_plane = y + (batch * channels + channel) * height * width
    a_taps, a_bias = _of_channel(weight, bias, channel, real, HAS_BIAS)
    g_taps, g_bias = _of_channel(weight, bias, channel + channels, real, HAS_BIAS)
    first = tl.program_id(1) * ROWS
    for row in range(first, tl.minimum(first + ROWS, height)):
        i = tl.cast(row, tl.int64)
        a = _convolve(a_plane, a_taps, a_bias, i, columns, masks, height, width, 0)
        g = _convolve(g_plane, g_taps, g_bias, i, columns, masks, height, width, 0)
        if GELU:
            a *= _below(a)
        tl.store(y_plane + i * width + column, (a * g).to(y.dtype.element_ty), masks[2])


@triton.jit
def _gradient(
    a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i, columns, masks, height, width,
    SHIFT: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """Of both halves of the convolution, at a row; zeros outside the image, where dy is."""
    inside = (i >= 0) & (i < height) & masks[SHIFT + 2]
    up = tl.load(dy_plane + i * width + columns[SHIFT + 2], inside, 0.0).to(tl.float32)
    a = _convolve(a_plane, a_taps, a_bias, i, columns, masks, height, width, SHIFT)
    g = _convolve(g_plane, g_taps, g_bias, i, columns, masks, height, width, SHIFT)
    if GELU:
        below = _below(a)
        slope = below + a * tl.exp(-0.5 * a * a) * 0.3989422804014327
        return up * g * slope, up * a * below
    return up * g, up * a


@triton.jit
def _three(
    a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i, columns, masks, height, width,
    GELU: tl.constexpr,
):  # fmt: skip
    """The gradients at a row, one column before, here and one behind: three of a, then three of g."""
    a0, g0 = _gradient(
        a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i, columns, masks, height, width, -1, GELU
    )
    a1, g1 = _gradient(
        a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i, columns, masks, height, width, 0, GELU
    )
    a2, g2 = _gradient(
        a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i, columns, masks, height, width, 1, GELU
    )
    return a0, a1, a2, g0, g1, g2


@triton.jit
def _transposed(taps, u0, u1, u2, m0, m1, m2, l0, l1, l2):
    """The convolution backward, of three rows of a gradient (upper, middle, lower): the taps turned round."""
    upper = taps[8] * u0 + taps[7] * u1 + taps[6] * u2
    middle = taps[5] * m0 + taps[4] * m1 + taps[3] * m2
    return upper + middle + (taps[2] * l0 + taps[1] * l1 + taps[0] * l2)


@triton.jit
def _moved(gradient, plane, row, columns, masks, height, width, J: tl.constexpr):
    """The gradient times x at a row, J columns beside."""
    inside = (row >= 0) & (row < height) & masks[J + 2]
    return gradient * tl.load(plane + row * width + columns[J + 2], inside, 0.0).to(tl.float32)


@triton.jit
def _add(sums, gradient, plane, i, columns, masks, height, width):
    """Ten sums: of the gradient times x moved by each tap, and of the gradient."""
    return (
        sums[0] + _moved(gradient, plane, i - 1, columns, masks, height, width, -1),
        sums[1] + _moved(gradient, plane, i - 1, columns, masks, height, width, 0),
        sums[2] + _moved(gradient, plane, i - 1, columns, masks, height, width, 1),
        sums[3] + _moved(gradient, plane, i, columns, masks, height, width, -1),
        sums[4] + _moved(gradient, plane, i, columns, masks, height, width, 0),
        sums[5] + _moved(gradient, plane, i, columns, masks, height, width, 1),
        sums[6] + _moved(gradient, plane, i + 1, columns, masks, height, width, -1),
        sums[7] + _moved(gradient, plane, i + 1, columns, masks, height, width, 0),
        sums[8] + _moved(gradient, plane, i + 1, columns, masks, height, width, 1),
        sums[9] + gradient,
    )


@triton.jit
def backward_kernel(
    dy, dy_batch, dy_channel,
    x, x_batch, x_channel,
    dx, weight, bias, partial,
    channels, height, width, blocks_c, blocks_w,
    GELU: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx of a strip, and its row of partial [B, strips, blocks of columns, 2C, 10]."""
    batch, channel, column = _block(blocks_c, blocks_w, BLOCK_C, BLOCK_W)
    real = channel < channels
    columns, masks = _columns(column, width, real)
    a_plane = x + batch * x_batch + channel * x_channel
    g_plane = x + batch * x_batch + (channel + channels) * x_channel
    dy_plane = dy + batch * dy_batch + channel * dy_channel
    da_plane = dx + (batch * 2 * channels + channel) * height * width
    dg_plane = dx + (batch * 2 * channels + channel + channels) * height * width
    a_taps, a_bias = _of_channel(weight, bias, channel, real, HAS_BIAS)
    g_taps, g_bias = _of_channel(weight, bias, channel + channels, real, HAS_BIAS)
    first = tl.program_id(1) * ROWS
    end = tl.minimum(first + ROWS, height)
    zero = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    a_sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    g_sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    ua0, ua1, ua2, ug0, ug1, ug2 = zero, zero, zero, zero, zero, zero  # the upper row's gradients
    # The middle row's, whose dx is written. Zeros of their own: u becomes m in the loop, and were both the same value
    # before it, Triton (3.6, 3.7) would take u for one that the loop does not change.
    other = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    ma0, ma1, ma2, mg0, mg1, mg2 = other, other, other, other, other, other
    # From two rows before the first, so that the compiler sees one copy of the convolutions.
    for row in range(first - 2, end):
        i = tl.cast(row, tl.int64)
        mine = masks[2] & (row >= first)
        a_sums = _add(a_sums, tl.where(mine, ma1, 0.0), a_plane, i, columns, masks, height, width)
        g_sums = _add(g_sums, tl.where(mine, mg1, 0.0), g_plane, i, columns, masks, height, width)
        la0, la1, la2, lg0, lg1, lg2 = _three(
            a_plane, g_plane, a_taps, g_taps, a_bias, g_bias, dy_plane, i + 1, columns, masks, height, width, GELU
        )  # fmt: skip
        da = _transposed(a_taps, ua0, ua1, ua2, ma0, ma1, ma2, la0, la1, la2)
        dg = _transposed(g_taps, ug0, ug1, ug2, mg0, mg1, mg2, lg0, lg1, lg2)
        tl.store(da_plane + i * width + column, da.to(dx.dtype.element_ty), mine)
        tl.store(dg_plane + i * width + column, dg.to(dx.dtype.element_ty), mine)
        ua0, ua1, ua2, ug0, ug1, ug2 = ma0, ma1, ma2, mg0, mg1, mg2
        ma0, ma1, ma2, mg0, mg1, mg2 = la0, la1, la2, lg0, lg1, lg2
    strip = (batch * tl.num_programs(1) + tl.program_id(1)) * blocks_w + tl.program_id(0) % blocks_w
    a_row = partial + (strip * 2 * channels + channel) * 10
    g_row = partial + (strip * 2 * channels + channel + channels) * 10
    for k in tl.static_range(10):
        tl.store(a_row + k, tl.sum(a_sums[k], 1)[:, None], real)
        tl.store(g_row + k, tl.sum(g_sums[k], 1)[:, None], real)


def _grid(x: Tensor, elements: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs and blocks. Columns first: they are read side by side."""
    batch, channels, height, width = x.shape
    block_w = min(triton.next_power_of_2(width), _MAX_COLUMNS)
    block_c = min(elements // block_w, triton.next_power_of_2(channels // 2))
    blocks_c, blocks_w = triton.cdiv(channels // 2, block_c), triton.cdiv(width, block_w)
    constants = {"BLOCK_C": block_c, "BLOCK_W": block_w, "ROWS": _ROWS, "num_warps": _WARPS}
    return (batch * blocks_c * blocks_w, triton.cdiv(height, _ROWS)), {
        "blocks_c": blocks_c, "blocks_w": blocks_w, **constants
    }  # fmt: skip


def _planar(x: Tensor) -> tuple[Any, ...]:
    x = x if layout.is_planar(x) else x.contiguous()
    return x, *x.stride()[:2]


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, channels // 2, height, width)
    if y.numel():
        grid, blocks = _grid(x, _FORWARD_ELEMENTS)
        forward_kernel[grid](
            *_planar(x), y, weight.float().contiguous(), None if bias is None else bias.float().contiguous(),
            channels // 2, height, width, GELU=gelu, HAS_BIAS=bias is not None, **blocks,
        )  # fmt: skip
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    dx, weight = x.new_empty(x.shape), weight.float().contiguous()
    if not x.numel():  # a sum over nothing
        return dx, torch.zeros_like(weight), weight.new_zeros(channels)
    grid, blocks = _grid(x, _BACKWARD_ELEMENTS)
    partial = weight.new_empty(batch * grid[1] * blocks["blocks_w"], channels, 10)
    backward_kernel[grid](
        *_planar(dy), *_planar(x), dx, weight, None if bias is None else bias.float().contiguous(), partial,
        channels // 2, height, width, GELU=gelu, HAS_BIAS=bias is not None, **blocks,
    )  # fmt: skip
    sums = partial.sum(0)  # [2C, 10]
    return dx, sums[:, :9].reshape(weight.shape), sums[:, 9].contiguous()
