"""feature_distances in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

A program takes a tile of an image, rows by elements of a run, and walks the K others past it; with a norm the tile
holds whole channel vectors, so that the norms are sums within it. Forward it leaves one partial sum for each of
the K, which are added up in order afterwards; backward it writes its tile of the gradients. No atomics, the same
bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.feature_distances.memory import ACROSS_ROWS, NO_NORM, Layer, gradient_like

# Elements of a tile for a thread: 8 forward, 8 backward, where three or four tiles are held with a norm.
_WARPS = 8
_ELEMENTS = 2048
_MAX_CHANNELS = 2048  # a tile holds a whole channel vector
_MAX_RUN = 128  # of pixels beside each other: longer bring no wider loads


def why_not(anchor: Tensor, others: Tensor) -> str | None:
    if torch.float64 in (anchor.dtype, others.dtype):
        return "it has no float64 kernel"
    if anchor.dim() > 1 and anchor.shape[1] > _MAX_CHANNELS:
        return f"it serves up to {_MAX_CHANNELS} channels and anchor has {anchor.shape[1]}"
    return None


@triton.jit
def _tile(pid, rows, run, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Batch, rows [BLOCK_R, 1] and elements [1, BLOCK_C] of a tile, 64-bit: strides reach 2^31."""
    across = tl.cdiv(run, BLOCK_C)
    per_image = across * tl.cdiv(rows, BLOCK_R)
    batch = (pid // per_image).to(tl.int64)
    within = pid % per_image
    row = (within // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)[:, None]
    column = (within % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)[None, :]
    return batch, row, column


@triton.jit
def _inverse_norm(x, AXIS: tl.constexpr):
    """1 / ||x|| along an axis, 0 where the vector is too short to have a direction."""
    norm = tl.sqrt(tl.sum(x * x, AXIS, keep_dims=True))
    return 1.0 / tl.where(norm > 1e-12, norm, float("inf"))


@triton.jit
def _slope(e, scale, POWER: tl.constexpr):
    """The derivative of scale * |e| or scale * e^2."""
    if POWER == 2:
        return 2 * scale * e
    return tl.where(e > 0, scale, tl.where(e < 0, -scale, 0.0))


@triton.jit
def forward_kernel(
    anchor, a_batch, a_row,
    others, o_negative, o_batch, o_row,
    partial,
    negatives, rows, run, tiles,
    POWER: tl.constexpr, AXIS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    batch, row, column = _tile(tl.program_id(0), rows, run, BLOCK_R, BLOCK_C)
    inside = (row < rows) & (column < run)
    a = tl.load(anchor + batch * a_batch + row * a_row + column, inside, 0.0).to(tl.float32)
    if AXIS >= 0:
        a *= _inverse_norm(a, AXIS)
    source = others + batch * o_batch + row * o_row + column
    for k in range(negatives):
        o = tl.load(source + tl.cast(k, tl.int64) * o_negative, inside, 0.0).to(tl.float32)
        if AXIS >= 0:
            o *= _inverse_norm(o, AXIS)
        e = a - o  # outside both are 0
        term = e * e if POWER == 2 else tl.abs(e)
        tl.store(partial + tl.cast(k, tl.int64) * tiles + tl.program_id(0), tl.sum(tl.sum(term, 1), 0))


@triton.jit
def _through_norm(d, x, inverse, AXIS: tl.constexpr):
    """The gradient of what was normalised from that of ``x``, the unit vectors."""
    return (d - x * tl.sum(x * d, AXIS, keep_dims=True)) * inverse


@triton.jit
def backward_kernel(
    dy, anchor, a_batch, a_row,
    others, o_negative, o_batch, o_row,
    danchor, dothers,
    negatives, images, rows, run, scale,
    POWER: tl.constexpr, AXIS: tl.constexpr, NEED_ANCHOR: tl.constexpr, NEED_OTHERS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    batch, row, column = _tile(tl.program_id(0), rows, run, BLOCK_R, BLOCK_C)
    inside = (row < rows) & (column < run)
    a = tl.load(anchor + batch * a_batch + row * a_row + column, inside, 0.0).to(tl.float32)
    if AXIS >= 0:
        a_inverse = _inverse_norm(a, AXIS)
        a *= a_inverse
    image = tl.cast(rows, tl.int64) * run
    within = row * run + column
    source = others + batch * o_batch + row * o_row + column
    da = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for k in range(negatives):
        o = tl.load(source + tl.cast(k, tl.int64) * o_negative, inside, 0.0).to(tl.float32)
        if AXIS >= 0:
            o_inverse = _inverse_norm(o, AXIS)
            o *= o_inverse
        place = tl.cast(k, tl.int64) * images + batch
        d = _slope(a - o, tl.load(dy + place) * scale, POWER)
        da += d
        if NEED_OTHERS:
            d = -d
            if AXIS >= 0:
                d = _through_norm(d, o, o_inverse, AXIS)
            tl.store(dothers + place * image + within, d.to(dothers.dtype.element_ty), inside)
    if NEED_ANCHOR:
        if AXIS >= 0:
            da = _through_norm(da, a, a_inverse, AXIS)
        tl.store(danchor + batch * image + within, da.to(danchor.dtype.element_ty), inside)


def _plan(layer: Layer, p: int) -> tuple[int, dict[str, Any]]:
    """Tiles of an image, and the constants of both kernels."""
    _, _, rows, run = layer.size()
    if layer.norm == NO_NORM:
        block_c = min(_ELEMENTS, triton.next_power_of_2(run))
        block_r = min(_ELEMENTS // block_c, triton.next_power_of_2(rows))
        axis = -1
    elif layer.norm == ACROSS_ROWS:
        block_r = triton.next_power_of_2(rows)
        block_c = max(1, min(_ELEMENTS // block_r, _MAX_RUN, triton.next_power_of_2(run)))
        axis = 0
    else:
        block_c = triton.next_power_of_2(run)
        block_r = max(1, min(_ELEMENTS // block_c, triton.next_power_of_2(rows)))
        axis = 1
    constants = {"POWER": p, "AXIS": axis, "BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": _WARPS}
    return triton.cdiv(rows, block_r) * triton.cdiv(run, block_c), constants


def _read(layer: Layer) -> tuple[Any, ...]:
    a, o = layer.anchor, layer.others
    return a, *a.stride()[:2], o, *o.stride()[:3]


def forward(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    if not others.numel():
        return anchor.new_empty(others.shape[:2], dtype=wide(anchor.dtype, others.dtype))
    layer = Layer.of(anchor, others, normalize)
    negatives, batch, rows, run = layer.size()
    tiles, constants = _plan(layer, p)
    partial = torch.empty((negatives, batch, tiles), dtype=torch.float32, device=anchor.device)
    forward_kernel[(batch * tiles,)](
        *_read(layer), partial, negatives, rows, run, batch * tiles, **constants
    )  # fmt: skip
    return partial.sum(2) / (rows * run)


def backward(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
) -> tuple[Tensor, Tensor]:
    if not others.numel():
        return (
            gradient_like(anchor, 1).zero_() if need_anchor else anchor.new_empty(0),
            gradient_like(others, 2) if need_others else others.new_empty(0),
        )
    layer = Layer.of(anchor, others, normalize)
    negatives, batch, rows, run = layer.size()
    tiles, constants = _plan(layer, p)
    danchor = layer.anchor.new_empty(layer.anchor.shape if need_anchor else (0,))
    dothers = layer.others.new_empty(layer.others.shape if need_others else (0,))
    backward_kernel[(batch * tiles,)](
        dy.float().contiguous(), *_read(layer), danchor, dothers,
        negatives, batch, rows, run, 1.0 / (rows * run),
        NEED_ANCHOR=need_anchor, NEED_OTHERS=need_others, **constants,
    )  # fmt: skip
    return (
        layer.gradient(anchor, 1, danchor) if need_anchor else anchor.new_empty(0),
        layer.gradient(others, 2, dothers) if need_others else others.new_empty(0),
    )
