"""channel_attention in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

The pixels of a head are cut into slices. ``products_kernel`` leaves the products of two images' channels over each
slice (forward q and k, with their norms; backward dy and v), and one of the small kernels adds the slices up in
order and makes of them what ``apply_kernel`` multiplies an image by. The images are read as they are: the norms
divide the small matrices. No atomics, the same bits every time.

A bf16 image is multiplied on the tensor cores by a matrix in three bf16 parts, which together hold all 24 bits of
its fp32; fp32 and fp16 images in fp32 (fp16 has not the range for the backward's matrix, which is divided by two
norms). How launches are found and compiled without a GPU, the docstring of layer_norm2d/triton.py says.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels import layout

_MAX_WIDTH = 1024  # channels of a head: the small kernels hold a row in a program
_MAX_TILE = 64  # channels of a tile of results; a head of 48, the model's own, is one
_PIXELS = 64  # of a step: 128 to 256 bytes of a planar row
_DEPTH = 32  # channels of a step of `apply_kernel`; half for fp16, whose fp32 copies would take 250 registers
_WARPS = 8  # 8 elements of a tile in a thread: with four warps some fp32 tiles spill
_SMALL_WARPS = 4
_STAGES = (
    2  # a third would take 64 KiB of shared memory for an fp32 step, and a program from the multiprocessor
)
_PROGRAMS = 264  # wanted of `products_kernel`: two for each of 132 multiprocessors
_LEAST_SLICE = 256  # pixels: below this a slice's sums take as long to add up as to make
_SMALL_ELEMENTS = 4096  # of a tile of the small kernels
_MIN_NORM = tl.constexpr(1e-12)


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    if torch.float64 in (qkv.dtype, temperature.dtype):
        return "it has no float64 kernel"
    width = qkv.shape[1] // 3 // temperature.shape[0]
    if width > _MAX_WIDTH:
        return f"it serves up to {_MAX_WIDTH} channels a head and qkv has {width}"
    return None


@triton.jit
def _dot(a, b, sum, NARROW: tl.constexpr):
    """sum + a b, in fp32. The interpreter multiplies bf16 wrongly, so there it is given fp32 (not NARROW)."""
    if NARROW:
        return tl.dot(a, b, sum)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), sum, input_precision="ieee")


@triton.jit
def products_kernel(
    x, x_batch, x_channel, x_pixel,
    y, y_batch, y_channel, y_pixel,
    products, squares,
    heads, width, pixels, slices, slice_pixels,
    X_THIRD: tl.constexpr, Y_THIRD: tl.constexpr, SQUARES: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Of one slice: products[i, j] = <x_i, y_j>, [heads of all images, slices, c, c]; squares [.., 2, c]."""
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // slices // heads, row // slices % heads
    i = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    j = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    x_rows = x + batch * x_batch + ((X_THIRD * heads + head) * width + i)[:, None] * x_channel
    y_rows = y + batch * y_batch + ((Y_THIRD * heads + head) * width + j)[:, None] * y_channel
    first = (tl.program_id(0) % slices) * slice_pixels
    end = tl.minimum(first + slice_pixels, pixels)
    sums = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    x_squares = tl.zeros((BLOCK_C,), tl.float32)
    y_squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, end, BLOCK_P):
        p = (start + tl.arange(0, BLOCK_P))[None, :].to(tl.int64)
        a = tl.load(x_rows + p * x_pixel, (i < width)[:, None] & (p < end), 0.0)
        b = tl.load(y_rows + p * y_pixel, (j < width)[:, None] & (p < end), 0.0)
        sums = _dot(a, tl.trans(b), sums, NARROW)
        if SQUARES:
            a, b = a.to(tl.float32), b.to(tl.float32)
            x_squares += tl.sum(a * a, 1)
            y_squares += tl.sum(b * b, 1)
    inside = (i < width)[:, None] & (j < width)[None, :]
    tl.store(products + (row * width + i[:, None]) * width + j[None, :], sums, inside)
    if SQUARES:
        tl.store(squares + row * 2 * width + i, x_squares, (i < width) & (tl.program_id(2) == 0))
        tl.store(squares + (row * 2 + 1) * width + j, y_squares, (j < width) & (tl.program_id(1) == 0))


@triton.jit
def _sum_of_slices(partial, offset, inside, stride, slices, SHAPE: tl.constexpr):
    """In fp64, as on a CPU: a photo has thousands of pixels in a slice and hundreds of slices."""
    total = tl.zeros(SHAPE, tl.float64)
    for s in range(slices):
        total += tl.load(partial + tl.cast(s, tl.int64) * stride + offset, inside, 0.0).to(tl.float64)
    return total.to(tl.float32)


@triton.jit
def _softmax(cosines, temperature, inside):
    logits = tl.where(inside, temperature * cosines, float("-inf"))
    largest = tl.max(logits, 1)[:, None]
    weights = tl.exp(tl.where(inside, logits - largest, float("-inf")))
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _unclamped(norm):
    return norm > _MIN_NORM


@triton.jit
def forward_kernel(
    products, squares, temperature, q_norm, k_norm, cosines, attention,
    heads, width, slices,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Norms, cosines and attention of BLOCK_R rows of a head."""
    at = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + at % heads)
    i = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    j = tl.arange(0, BLOCK_W).to(tl.int64)
    head_squares = squares + at * slices * 2 * width
    q = tl.sqrt(_sum_of_slices(head_squares, i, i < width, 2 * width, slices, (BLOCK_R,)))
    k = tl.sqrt(_sum_of_slices(head_squares + width, j, j < width, 2 * width, slices, (BLOCK_W,)))
    q, k = tl.where(q < _MIN_NORM, _MIN_NORM, q), tl.where(k < _MIN_NORM, _MIN_NORM, k)
    # A row past the last is computed as zeros; nothing of it is stored.
    columns = (j < width)[None, :]
    inside = (i < width)[:, None] & columns
    entry = i[:, None] * width + j[None, :]
    matrix = at * width * width
    gram = _sum_of_slices(
        products + matrix * slices, entry, inside, width * width, slices, (BLOCK_R, BLOCK_W)
    )
    s = gram / q[:, None] / k[None, :]
    tl.store(cosines + matrix + entry, s, inside)
    tl.store(attention + matrix + entry, _softmax(s, t, columns), inside)
    tl.store(q_norm + at * width + i, q, i < width)
    tl.store(k_norm + at * width + j, k, (j < width) & (tl.program_id(1) == 0))


@triton.jit
def attention_kernel(
    cosines, temperature, attention, heads, width, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    """The attention again, of BLOCK_R rows of a head."""
    at = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    j = tl.arange(0, BLOCK_W).to(tl.int64)
    inside = (i < width)[:, None] & (j < width)[None, :]
    entry = at * width * width + i[:, None] * width + j[None, :]
    s = tl.load(cosines + entry, inside, 0.0)
    weights = _softmax(s, tl.load(temperature + at % heads), (j < width)[None, :])
    tl.store(attention + entry, weights, inside)


@triton.jit
def backward_kernel(
    products, temperature, q_norm, k_norm, cosines, attention, matrix, projections, dtemperature,
    heads, width, slices,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Of a head, from the products dA = dy v^T: M, what dq and dk are made with, and a and b of csrc's math.h."""
    at = tl.program_id(0).to(tl.int64)
    t = tl.load(temperature + at % heads)
    j = tl.arange(0, BLOCK_W).to(tl.int64)
    k = tl.load(k_norm + at * width + j, j < width, 1.0)
    start = at * width * width
    along_k = tl.zeros((BLOCK_W,), tl.float32)
    share = tl.zeros((BLOCK_W,), tl.float32)
    for row in range(0, width, BLOCK_R):
        i = row + tl.arange(0, BLOCK_R).to(tl.int64)
        inside = (i < width)[:, None] & (j < width)[None, :]
        entry = i[:, None] * width + j[None, :]
        q = tl.load(q_norm + at * width + i, i < width, 1.0)
        s = tl.load(cosines + start + entry, inside, 0.0)
        weights = tl.load(attention + start + entry, inside, 0.0)
        da = _sum_of_slices(
            products + start * slices, entry, inside, width * width, slices, (BLOCK_R, BLOCK_W)
        )
        dlogits = weights * (da - tl.sum(da * weights, 1)[:, None])
        share += tl.sum(dlogits * s, 0)
        dcosines = t * dlogits
        along = dcosines * s
        along_k += tl.sum(along, 0)
        a = tl.where(_unclamped(q), tl.sum(along, 1) / (q * q), 0.0)
        tl.store(projections + at * 2 * width + i, a, i < width)
        tl.store(matrix + start + entry, dcosines / q[:, None] / k[None, :], inside)
    b = tl.where(_unclamped(k), along_k / (k * k), 0.0)
    tl.store(projections + (at * 2 + 1) * width + j, b, j < width)
    tl.store(dtemperature + at, tl.sum(share, 0))


@triton.jit
def apply_kernel(
    matrix, x, x_batch, x_channel, x_pixel,
    z, z_batch, z_channel, z_pixel,
    projections,
    heads, width, pixels,
    X_THIRD: tl.constexpr, Z_THIRD: tl.constexpr, TRANSPOSED: tl.constexpr, PROJECT: tl.constexpr,
    NARROW: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """z = matrix x, or its transpose times x. With PROJECT both, by program_id(2), of x = qkv: dq = M k - a q and
    dk = M^T q - b k."""
    role = tl.program_id(2)
    blocks = tl.cdiv(pixels, BLOCK_P)
    at = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = at // heads, at % heads
    p = ((tl.program_id(0) % blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P))[None, :]
    i = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    if PROJECT:
        x_third, z_third = 1 - role, role
        m_row, m_column = tl.where(role == 0, width, 1), tl.where(role == 0, 1, width)
    else:
        x_third, z_third = X_THIRD, Z_THIRD
        m_row, m_column = (1, width) if TRANSPOSED else (width, 1)
    x_head = x + batch * x_batch + (x_third * heads + head) * width * x_channel + p * x_pixel
    m_rows = matrix + at * width * width + i[:, None] * m_row
    sums = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        m = tl.load(m_rows + k[None, :] * m_column, (i < width)[:, None] & (k < width)[None, :], 0.0)
        column = tl.load(x_head + k[:, None] * x_channel, (k < width)[:, None] & (p < pixels), 0.0)
        if PARTS == 1:
            sums = _dot(m, column, sums, False)
        else:  # the parts of a matrix that is NaN or infinite are NaN: so is the sum
            for _ in tl.static_range(PARTS):
                part = m.to(tl.bfloat16)
                sums = _dot(part, column, sums, NARROW)
                m -= part.to(tl.float32)
    where = (i < width)[:, None] & (p < pixels)
    if PROJECT:
        own = x + batch * x_batch + ((role * heads + head) * width + i)[:, None] * x_channel + p * x_pixel
        scale = tl.load(projections + (at * 2 + role) * width + i, i < width, 0.0)
        sums -= scale[:, None] * tl.load(own, where, 0.0).to(tl.float32)
    target = z + batch * z_batch + ((z_third * heads + head) * width + i)[:, None] * z_channel + p * z_pixel
    tl.store(target, sums.to(z.dtype.element_ty), where)


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, width = len(qkv), temperature.shape[0], qkv.shape[1] // 3 // temperature.shape[0]
    y = layout.empty_like(qkv, heads * width)
    q_norm = torch.empty((batch, heads * width), dtype=torch.float32, device=qkv.device)
    k_norm = torch.empty_like(q_norm)
    cosines = q_norm.new_empty(batch, heads, width, width)
    if not y.numel():  # sums over nothing
        return y, q_norm.fill_(_MIN_NORM.value), k_norm.fill_(_MIN_NORM.value), cosines.zero_()
    qkv = layout.readable(qkv)
    products, squares, slices = _products(qkv, qkv, heads, width, x_third=0, y_third=1, norms=True)
    attention = torch.empty_like(cosines)
    rows = _rows(width)
    forward_kernel[(batch * heads, triton.cdiv(width, rows["BLOCK_R"]))](
        products, squares, temperature.float().contiguous(), q_norm, k_norm, cosines, attention,
        heads, width, slices, **rows, num_warps=_SMALL_WARPS,
    )  # fmt: skip
    _apply(attention, qkv, y, heads, width, x_third=2)
    return y, q_norm, k_norm, cosines


def backward(
    dy: Tensor, qkv: Tensor, temperature: Tensor, q_norm: Tensor, k_norm: Tensor, cosines: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, width, _ = cosines.shape
    dqkv = layout.empty_like(qkv)
    if not dqkv.numel():
        return dqkv, cosines.new_zeros(temperature.shape)
    qkv, dy = layout.readable(qkv), layout.readable(dy)
    t = temperature.float().contiguous()
    attention, matrix = torch.empty_like(cosines), torch.empty_like(cosines)
    projections = q_norm.new_empty(batch, heads, 2, width)
    dtemperature = q_norm.new_empty(batch, heads)
    products, _, slices = _products(dy, qkv, heads, width, x_third=0, y_third=2, norms=False)
    rows = _rows(width)
    attention_kernel[(batch * heads, triton.cdiv(width, rows["BLOCK_R"]))](
        cosines, t, attention, heads, width, **rows, num_warps=_SMALL_WARPS
    )  # fmt: skip
    backward_kernel[(batch * heads,)](
        products, t, q_norm, k_norm, cosines, attention, matrix, projections, dtemperature,
        heads, width, slices, **rows, num_warps=_SMALL_WARPS,
    )  # fmt: skip
    _apply(attention, dy, dqkv, heads, width, x_third=0, z_third=2, transposed=True)
    _apply(matrix, qkv, dqkv, heads, width, projections=projections)
    return dqkv, dtemperature.sum(0).view(temperature.shape)


def _products(
    x: Tensor, y: Tensor, heads: int, width: int, *, x_third: int, y_third: int, norms: bool
) -> tuple[Tensor, Tensor | None, int]:
    """Products and squares of each slice, and how many slices a head has: a function of the sizes alone."""
    batch, pixels = len(x), x.shape[2] * x.shape[3]
    block = max(16, min(_MAX_TILE, triton.next_power_of_2(width)))
    tiles = triton.cdiv(width, block)
    wanted = max(1, _PROGRAMS // (batch * heads * tiles * tiles))
    slice_pixels = max(_LEAST_SLICE, triton.cdiv(triton.cdiv(pixels, wanted), _PIXELS) * _PIXELS)
    slices = triton.cdiv(pixels, slice_pixels)
    products = torch.empty((batch * heads, slices, width, width), dtype=torch.float32, device=x.device)
    squares = products.new_empty(batch * heads, slices, 2, width) if norms else None
    products_kernel[(batch * heads * slices, tiles, tiles)](
        *_strided(x), *_strided(y), products, squares, heads, width, pixels, slices, slice_pixels,
        X_THIRD=x_third, Y_THIRD=y_third, SQUARES=norms, NARROW=_narrow(x),
        BLOCK_C=block, BLOCK_P=_PIXELS, num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    return products, squares, slices


def _apply(
    matrix: Tensor,
    x: Tensor,
    z: Tensor,
    heads: int,
    width: int,
    *,
    x_third: int = 0,
    z_third: int = 0,
    transposed: bool = False,
    projections: Tensor | None = None,
) -> None:
    batch, pixels = len(x), x.shape[2] * x.shape[3]
    block = max(16, min(_MAX_TILE, triton.next_power_of_2(width)))
    depth = _DEPTH // 2 if x.dtype == torch.float16 else min(_DEPTH, block)
    project = projections is not None
    apply_kernel[(batch * heads * triton.cdiv(pixels, _PIXELS), triton.cdiv(width, block), 1 + project)](
        matrix, *_strided(x), *_strided(z), projections, heads, width, pixels,
        X_THIRD=x_third, Z_THIRD=z_third, TRANSPOSED=transposed, PROJECT=project,
        NARROW=_narrow(x), PARTS=3 if x.dtype == torch.bfloat16 else 1,
        BLOCK_C=block, BLOCK_K=depth, BLOCK_P=_PIXELS, num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip


def _rows(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK_R": max(1, min(_SMALL_ELEMENTS // block, block)), "BLOCK_W": block}


def _narrow(x: Tensor) -> bool:
    """Whether 16-bit operands may be multiplied as they are: not by the interpreter."""
    return x.dtype != torch.float32 and isinstance(forward_kernel, triton.JITFunction)


def _strided(x: Tensor) -> tuple[Any, ...]:
    return x, *layout.view(x)[1:]
