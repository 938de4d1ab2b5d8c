"""route_topk in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1): a program a row, one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_PROMPTS = 4096  # a row is held in the registers of a few warps
_PER_WARP = 256  # of it: 8 elements a lane; from 16 on some of the values that a draw needs spill


def why_not(logits: Tensor) -> str | None:
    if logits.dtype == torch.float64:
        return "it has no float64 kernel"
    if logits.shape[1] > _MAX_PROMPTS:
        return f"it serves up to {_MAX_PROMPTS} prompts and logits has {logits.shape[1]}"
    return None


@triton.jit
def read_row(logits, row, prompts, N: tl.constexpr):
    """The row in fp32, which of its places are prompts, and whether it has no softmax (its values are then 0)."""
    n = tl.arange(0, N)
    inside = n < prompts
    value = tl.load(logits + row.to(tl.int64) * prompts + n, inside, 0.0).to(tl.float32)
    highest = tl.max(tl.where(inside, value, float("-inf")), 0)
    nan = tl.sum((value != value).to(tl.int32), 0) > 0
    bad = nan | (highest == float("inf")) | (highest == float("-inf"))
    return tl.where(bad, 0.0, value), inside, bad


@triton.jit
def ranks(value, inside, chosen, N: tl.constexpr):
    """For each prompt its place among the chosen, from 0, or -1: by value, ties to the lowest index."""
    n = tl.arange(0, N)
    rank = tl.full((N,), -1, tl.int32)
    for i in range(chosen):
        left = inside & (rank < 0)
        best = tl.max(tl.where(left, value, float("-inf")), 0)
        pick = tl.min(tl.where(left & (value == best), n, N), 0)
        rank = tl.where(n == pick, i, rank)
    return rank


@triton.jit
def softmax(value, among, bad):
    """Softmax over the places ``among``, 0 elsewhere, NaN throughout a row that has none."""
    highest = tl.max(tl.where(among, value, float("-inf")), 0)
    e = tl.where(among, tl.exp(tl.where(among, value - highest, 0.0)), 0.0)
    return tl.where(bad, float("nan"), e / tl.sum(e, 0))


@triton.jit
def forward_kernel(
    logits, weights, indices, prompts, chosen, RENORMALIZE: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    value, inside, bad = read_row(logits, row, prompts, N)
    rank = ranks(value, inside, chosen, N)
    picked = rank >= 0
    p = softmax(value, picked if RENORMALIZE else inside, bad)
    place = row.to(tl.int64) * chosen + rank
    tl.store(weights + place, p.to(weights.dtype.element_ty), picked)
    tl.store(indices + place, tl.arange(0, N).to(tl.int64), picked)


@triton.jit
def backward_kernel(
    dweights, logits, indices, dlogits, prompts, chosen, RENORMALIZE: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    value, inside, bad = read_row(logits, row, prompts, N)
    n = tl.arange(0, N)
    upstream = tl.zeros((N,), tl.float32)
    picked = n < 0
    for i in range(chosen):
        place = row.to(tl.int64) * chosen + i
        here = n == tl.load(indices + place)
        upstream = tl.where(here, tl.load(dweights + place).to(tl.float32), upstream)
        picked = picked | here
    among = (inside & picked) if RENORMALIZE else inside
    p = softmax(value, among, bad)
    gradient = p * (upstream - tl.sum(tl.where(among, p * upstream, 0.0), 0))
    where = dlogits + row.to(tl.int64) * prompts + n
    tl.store(where, gradient.to(dlogits.dtype.element_ty), inside)


def block(prompts: int) -> dict[str, int]:
    size = triton.next_power_of_2(prompts)
    return {"N": size, "num_warps": max(1, size // _PER_WARP)}


def forward(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    batch, prompts = logits.shape
    logits = logits.contiguous()
    weights, indices = logits.new_empty((batch, k)), logits.new_empty((batch, k), dtype=torch.int64)
    if batch:
        forward_kernel[(batch,)](
            logits, weights, indices, prompts, k, RENORMALIZE=renormalize, **block(prompts)
        )
    return weights, indices


def backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    batch, prompts = logits.shape
    dlogits = logits.new_empty((batch, prompts))
    if batch:
        backward_kernel[(batch,)](
            dweights.contiguous(), logits.contiguous(), indices.contiguous(), dlogits, prompts, indices.shape[1],
            RENORMALIZE=renormalize, **block(prompts),
        )  # fmt: skip
    return dlogits
