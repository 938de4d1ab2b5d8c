"""route_negatives in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1): a program a draw, one launch.

A program keeps for each prompt its place in the list that is shuffled, not the list: a swap of two
places is then a comparison, and nothing is scattered.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels.route_topk import triton as route_topk
from cpl_kernels.route_topk.triton import ranks, read_row, softmax


def why_not(logits: Tensor, seed: Tensor) -> str | None:
    return route_topk.why_not(logits)


@triton.jit
def forward_kernel(
    logits, seed, weights, indices, batch, prompts, chosen,
    POSITIVE: tl.constexpr, RENORMALIZE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    image, draw = tl.program_id(0), tl.program_id(1)
    value, inside, bad = read_row(logits, image, prompts, N)
    rank = ranks(value, inside, chosen, N)
    left = inside & (rank < 0)
    n = tl.arange(0, N)
    place = tl.where(left, tl.cumsum(left.to(tl.int32), 0) - 1, N)  # in the list of those left, ascending
    key = tl.load(seed)
    for i in range(chosen):
        low, high, _, _ = tl.philox(key, image, draw, i, 0)
        bound = (prompts - chosen - i).to(tl.int64)
        low, high = low.to(tl.uint32).to(tl.int64), high.to(tl.uint32).to(tl.int64)
        at = i + ((high * bound + ((low * bound) >> 32)) >> 32).to(tl.int32)
        place = tl.where(place == at, i, tl.where(place == i, at, place))
    drawn = place < chosen
    start = (draw.to(tl.int64) * batch + image) * chosen
    tl.store(indices + start + place, n.to(tl.int64), drawn)
    if POSITIVE:
        among, slot = rank >= 0, rank
    else:
        among, slot = drawn, place
    p = softmax(value, among if RENORMALIZE else inside, bad)
    tl.store(weights + start + slot, p.to(weights.dtype.element_ty), among)


def forward(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, positive_weights: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    batch, prompts = logits.shape
    shape = (num_negatives, batch, k)
    weights, indices = logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)
    if batch:
        forward_kernel[(batch, num_negatives)](
            logits.contiguous(), seed, weights, indices, batch, prompts, k,
            POSITIVE=positive_weights, RENORMALIZE=renormalize, **route_topk.block(prompts),
        )  # fmt: skip
    return weights, indices
