"""layer_norm2d in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

A program holds a tile of all channels by BLOCK_P pixels, so the image is read once. The backward's
programs are persistent: each walks its tiles in order and leaves one row of dweight and dbias, and
the rows are added up in order afterwards. No atomics, the same bits every time.

What is launched, in every op's triton.py, is said by ``forward`` and ``backward`` alone. A kernel stands
in the module, is called ``<name>_kernel`` and is launched as ``<name>_kernel[grid](...)``, with blocks and
warps that follow from shapes, dtypes and strides: never from values, nor from the GPU at hand. So both
functions also run on meta tensors, where tests/kernels/triton_aot.py takes each launch down and compiles
just that for GPUs that are not there; tests/kernels/<op>/limits.py says for which calls, and what a kernel
may take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels import layout

# Sixteen warps (the most that AMD has in a program) keep 16 elements of a tile in a thread forward, 8 of two
# tiles backward, 4 from 1024 channels on. Each element's 64-bit address in three images stays in registers too:
# with eight warps, and so twice the elements, some channel counts spill. On an H200 four warps with tiles of 4096 and
# 2048 elements took half the time at 48 and 96 channels, and spill on every other target.
_WARPS = 16
_FORWARD_ELEMENTS = 8192
_BACKWARD_ELEMENTS = 4096
_BACKWARD_ELEMENTS_WIDE = 2048
_WIDE = 1024  # channels, rounded up to a power of two
_MAX_PIXELS = 128  # longer rows bring no wider loads
_MAX_CHANNELS = 2048  # at 4096 the backward spills with a tile of a single pixel
_MAX_ROWS = 528  # persistent programs: four for each of 132 multiprocessors


def why_not(x: Tensor) -> str | None:
    if x.dtype == torch.float64:
        return "it has no float64 kernel"
    if x.shape[1] > _MAX_CHANNELS:
        return f"it serves up to {_MAX_CHANNELS} channels and x has {x.shape[1]}"
    return None


@triton.jit
def _tile(pid, pixels, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Batch, channels [BLOCK_C, 1] and pixels [1, BLOCK_P] of a tile, 64-bit: strides reach 2^31."""
    per_image = tl.cdiv(pixels, BLOCK_P)
    batch = (pid // per_image).to(tl.int64)
    first = (pid % per_image).to(tl.int64) * BLOCK_P
    channel = tl.arange(0, BLOCK_C).to(tl.int64)[:, None]
    pixel = first + tl.arange(0, BLOCK_P).to(tl.int64)[None, :]
    return batch, channel, pixel


@triton.jit
def forward_kernel(
    x, x_batch, x_channel, x_pixel,
    y, y_batch, y_channel, y_pixel,
    weight, bias, mean, rstd,
    channels, pixels, eps,
    CENTER: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    batch, channel, pixel = _tile(tl.program_id(0), pixels, BLOCK_C, BLOCK_P)
    inside = (channel < channels) & (pixel < pixels)
    value = tl.load(x + batch * x_batch + channel * x_channel + pixel * x_pixel, inside, 0.0).to(tl.float32)
    mu = tl.sum(value, 0) / channels  # [BLOCK_P]
    centred = tl.where(inside, value - mu[None, :], 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
    w = tl.load(weight + channel, channel < channels, 0.0)
    out = (centred if CENTER else value) * r[None, :] * w
    if HAS_BIAS:
        out += tl.load(bias + channel, channel < channels, 0.0)
    tl.store(y + batch * y_batch + channel * y_channel + pixel * y_pixel, out.to(y.dtype.element_ty), inside)
    flat = tl.program_id(0) % tl.cdiv(pixels, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    tl.store(mean + batch * pixels + flat, mu, flat < pixels)
    tl.store(rstd + batch * pixels + flat, r, flat < pixels)


@triton.jit
def backward_kernel(
    dy, dy_batch, dy_channel, dy_pixel,
    x, x_batch, x_channel, x_pixel,
    dx, dx_batch, dx_channel, dx_pixel,
    weight, mean, rstd, partial,
    channels, pixels, tiles,
    CENTER: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    for index in range(row, tiles, tl.num_programs(0)):
        batch, channel, pixel = _tile(index, pixels, BLOCK_C, BLOCK_P)
        inside = (channel < channels) & (pixel < pixels)
        w = tl.load(weight + channel, channel < channels, 0.0)
        mu = tl.load(mean + batch * pixels + pixel, pixel < pixels, 0.0)  # [1, BLOCK_P]
        r = tl.load(rstd + batch * pixels + pixel, pixel < pixels, 0.0)
        value = tl.load(x + batch * x_batch + channel * x_channel + pixel * x_pixel, inside, 0.0).to(
            tl.float32
        )
        up = tl.load(dy + batch * dy_batch + channel * dy_channel + pixel * dy_pixel, inside, 0.0)
        up = up.to(tl.float32)
        # Outside the tile up is 0, so what else stands there enters no sum.
        normalised = ((value - mu) if CENTER else value) * r
        dweight += tl.sum(up * normalised, 1)
        dbias += tl.sum(up, 1)
        g = up * w
        out = g - (value - mu) * r * (tl.sum(g * normalised, 0) / channels)[None, :]
        if CENTER:
            out -= (tl.sum(g, 0) / channels)[None, :]
        out *= r
        where = dx + batch * dx_batch + channel * dx_channel + pixel * dx_pixel
        tl.store(where, out.to(dx.dtype.element_ty), inside)
    c = tl.arange(0, BLOCK_C)
    row_start = partial + row.to(tl.int64) * 2 * channels
    tl.store(row_start + c, dweight, c < channels)
    tl.store(row_start + channels + c, dbias, c < channels)


def _blocks(x: Tensor, elements: int, elements_wide: int) -> dict[str, int]:
    _, channels, height, width = x.shape
    block_c = triton.next_power_of_2(channels)
    if block_c >= _WIDE:
        elements = elements_wide
    block_p = max(1, min(elements // block_c, _MAX_PIXELS, triton.next_power_of_2(height * width)))
    return {"BLOCK_C": block_c, "BLOCK_P": block_p}


def _strided(x: Tensor) -> tuple[Tensor, int, int, int]:
    return x, *layout.view(x)[1:]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = layout.empty_like(x)
    x = layout.readable(x)
    batch, channels, height, width = x.shape
    mean = torch.empty((batch, height, width), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel():
        blocks = _blocks(x, _FORWARD_ELEMENTS, _FORWARD_ELEMENTS)
        grid = (batch * triton.cdiv(height * width, blocks["BLOCK_P"]),)
        forward_kernel[grid](
            *_strided(x), *_strided(y),
            weight.float().contiguous(), None if bias is None else bias.float().contiguous(), mean, rstd,
            channels, height * width, eps,
            CENTER=center, HAS_BIAS=bias is not None, **blocks, num_warps=_WARPS,
        )  # fmt: skip
    return y, mean, rstd


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = layout.empty_like(x)
    x = layout.readable(x)
    dy = layout.readable_as(dy, x)
    batch, channels, height, width = x.shape
    if not x.numel():  # a sum over nothing
        return dx, mean.new_zeros(channels), mean.new_zeros(channels)
    blocks = _blocks(x, _BACKWARD_ELEMENTS, _BACKWARD_ELEMENTS_WIDE)
    tiles = batch * triton.cdiv(height * width, blocks["BLOCK_P"])
    partial = mean.new_empty(min(tiles, _MAX_ROWS), 2, channels)
    backward_kernel[(partial.shape[0],)](
        *_strided(dy), *_strided(x), *_strided(dx),
        weight.float().contiguous(), mean, rstd, partial,
        channels, height * width, tiles,
        CENTER=center, **blocks, num_warps=_WARPS,
    )  # fmt: skip
    dweight, dbias = partial.sum(0).unbind()
    return dx, dweight, dbias
