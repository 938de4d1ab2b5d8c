"""aggregate_prompts in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

Forward: a program takes a tile of one channel of one image; images are next to each other in the
launch, so that the prompts' tile is in cache for all of them. Backward: a program takes a tile of one
channel of one prompt, walks the pairs (image, place) that chose it in order, and writes its gradient
once; a prompt without such pairs gets zeros. For each pair it leaves one partial sum of the weight's
gradient; those are added up afterwards. No atomics, the same bits every time.

The resize is a gather both ways, its positions in exact integer arithmetic:
centre(o) = max((2 o + 1) source - size, 0) / (2 size).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # elements: eight for each thread of four warps
_RESIZED_BLOCK = 512  # with the positions and weights of each element, twice as many fill the registers
_MAX_SIDE = 16384  # (2 o + 1) * source must fit 31 bits


def why_not(weights: Tensor, indices: Tensor, prompts: Tensor) -> str | None:
    if torch.float64 in (weights.dtype, prompts.dtype):
        return "it has no float64 kernel"
    if max(prompts.shape[2:]) > _MAX_SIDE:
        return f"it serves prompts of up to {_MAX_SIDE} pixels a side and prompts is {tuple(prompts.shape)}"
    return None


@triton.jit
def neighbours(o, size, source):
    """Left and right source of output o, and the right one's share."""
    numerator = tl.maximum((2 * o + 1) * source - size, 0)
    left = tl.minimum(numerator // (2 * size), source - 1)
    share = (numerator - left * 2 * size).to(tl.float32) / (2 * size)
    return left, tl.minimum(left + 1, source - 1), share


@triton.jit
def read_resized(base, p, inside, source_h, source_w, height, width):
    """The plane at ``base`` at the output pixels p."""
    p = p.to(tl.int32)
    top, bottom, down = neighbours(p // width, height, source_h)
    left, right, across = neighbours(p % width, width, source_w)
    a = tl.load(base + top * source_w + left, inside, 0.0).to(tl.float32)
    b = tl.load(base + top * source_w + right, inside, 0.0).to(tl.float32)
    c = tl.load(base + bottom * source_w + left, inside, 0.0).to(tl.float32)
    d = tl.load(base + bottom * source_w + right, inside, 0.0).to(tl.float32)
    return (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)


@triton.jit
def touched(s, tap, size, source):
    """The tap-th output that may read source s, and with which weight (0: it does not)."""
    before = (2 * s - 1) * size - source  # over 2 source: the last output whose centre is at s - 1 or less
    first = tl.where(before < 0, 0, tl.maximum(before, 0) // (2 * source) + 1)
    o = tl.minimum(first + tap, size - 1)
    left, right, share = neighbours(o, size, source)
    weight = tl.where(left == s, 1 - share, 0.0) + tl.where(right == s, share, 0.0)
    return o, tl.where(first + tap < size, weight, 0.0)


@triton.jit
def read_transposed(
    base, p, inside, source_h, source_w, height, width, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr
):  # fmt: skip
    """What the gradient plane at ``base`` sends to the source pixels p."""
    p = p.to(tl.int32)
    total = tl.zeros(p.shape, tl.float32)
    for i in range(TAPS_H):
        row, weight_h = touched(p // source_w, i, height, source_h)
        line = tl.zeros(p.shape, tl.float32)
        for j in range(TAPS_W):
            column, weight_w = touched(p % source_w, j, width, source_w)
            reads = inside & (weight_h != 0) & (weight_w != 0)
            line += weight_w * tl.load(base + row * width + column, reads, 0.0).to(tl.float32)
        total += weight_h * line
    return total


@triton.jit
def forward_kernel(
    weights, indices, prompts, y, batch, chosen, count, channels, source_h, source_w, height, width,
    RESIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0) % batch
    tiles = tl.cdiv(height * width, BLOCK)
    channel = (tl.program_id(0) // batch // tiles).to(tl.int64)
    p = (tl.program_id(0) // batch % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < height * width
    out = tl.zeros((BLOCK,), tl.float32)
    for i in range(chosen):
        place = image.to(tl.int64) * chosen + i
        n = tl.load(indices + place)
        known = (n >= 0) & (n < count)
        weight = tl.where(known, tl.load(weights + place).to(tl.float32), float("nan"))
        base = prompts + (tl.where(known, n, 0) * channels + channel) * source_h * source_w
        if RESIZE:
            value = read_resized(base, p, inside, source_h, source_w, height, width)
        else:
            value = tl.load(base + p, inside, 0.0).to(tl.float32)
        out += weight * value
    target = y + (image.to(tl.int64) * channels + channel) * height * width + p
    tl.store(target, out.to(y.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    dy, weights, indices, prompts, partial, dprompts,
    pairs, chosen, count, channels, source_h, source_w, height, width, planes,
    RESIZE: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr,
    NEED_WEIGHTS: tl.constexpr, NEED_PROMPTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    prompt = tl.program_id(0) % count
    plane = tl.program_id(0) // count  # of the partial sums: a tile of a channel
    row = tl.cast(planes, tl.int64)
    tiles = tl.cdiv(source_h * source_w, BLOCK)
    channel = (plane // tiles).to(tl.int64)
    p = (plane % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = p < source_h * source_w
    own = (prompt.to(tl.int64) * channels + channel) * source_h * source_w + p
    if NEED_WEIGHTS:
        value = tl.load(prompts + own, inside, 0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for pair in range(pairs):
        n = tl.load(indices + pair)
        if n == prompt:
            base = dy + ((pair // chosen).to(tl.int64) * channels + channel) * height * width
            if RESIZE:
                d = read_transposed(base, p, inside, source_h, source_w, height, width, TAPS_H, TAPS_W)
            else:
                d = tl.load(base + p, inside, 0.0).to(tl.float32)
            if NEED_WEIGHTS:
                tl.store(partial + pair * row + plane, tl.sum(d * value, 0))
            total += tl.load(weights + pair).to(tl.float32) * d
        unknown = (prompt == 0) & ((n < 0) | (n >= count))  # nobody's pair: someone must say so
        if NEED_WEIGHTS & unknown:
            tl.store(partial + pair * row + plane, float("nan"))
    if NEED_PROMPTS:
        tl.store(dprompts + own, total.to(dprompts.dtype.element_ty), inside)


def _sizes(prompts: Tensor, height: int, width: int) -> tuple[bool, tuple[int, int, int, int, int]]:
    """Whether to resize, and channels, source and output size; without a resize all is one long row."""
    _, channels, source_h, source_w = prompts.shape
    if (height, width) == (source_h, source_w):
        length = channels * source_h * source_w
        return False, (1, 1, length, 1, length)
    if max(height, width) > _MAX_SIDE:
        raise ValueError(f"the Triton kernel resizes to up to {_MAX_SIDE} pixels a side, got {height, width}")
    return True, (channels, source_h, source_w, height, width)


def _block(pixels: int, most: int) -> int:
    return max(16, min(most, triton.next_power_of_2(pixels)))


def forward(weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int) -> Tensor:
    batch, chosen = weights.shape
    y = prompts.new_empty((batch, prompts.shape[1], height, width))
    resize, sizes = _sizes(prompts, height, width)
    block = _block(sizes[3] * sizes[4], _RESIZED_BLOCK if resize else _BLOCK)
    programs = batch * sizes[0] * triton.cdiv(sizes[3] * sizes[4], block)
    if programs:
        forward_kernel[(programs,)](
            weights.contiguous(), indices.contiguous(), prompts.contiguous(), y,
            batch, chosen, prompts.shape[0], *sizes, RESIZE=resize, BLOCK=block,
        )  # fmt: skip
    return y


def backward(
    dy: Tensor, weights: Tensor, indices: Tensor, prompts: Tensor, need_weights: bool, need_prompts: bool
) -> tuple[Tensor, Tensor]:
    batch, chosen = weights.shape
    resize, sizes = _sizes(prompts, dy.shape[2], dy.shape[3])
    channels, source_h, source_w, height, width = sizes
    block = _block(source_h * source_w, _RESIZED_BLOCK if resize else _BLOCK)
    planes = channels * triton.cdiv(source_h * source_w, block)
    partial = weights.new_empty((batch * chosen, planes) if need_weights else 0, dtype=torch.float32)
    dprompts = prompts.new_empty(prompts.shape if need_prompts else 0)
    backward_kernel[(prompts.shape[0] * planes,)](
        dy.contiguous(), weights.contiguous(), indices.contiguous(), prompts.contiguous(), partial, dprompts,
        batch * chosen, chosen, prompts.shape[0], *sizes, planes,
        RESIZE=resize, TAPS_H=triton.cdiv(2 * height, source_h), TAPS_W=triton.cdiv(2 * width, source_w),
        NEED_WEIGHTS=need_weights, NEED_PROMPTS=need_prompts, BLOCK=block,
    )  # fmt: skip
    dweights = (
        partial.sum(1).view(batch, chosen).to(weights.dtype) if need_weights else partial.to(weights.dtype)
    )
    return dweights, dprompts
