"""route_negatives in C++ for CPU tensors (csrc/route_negatives/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.route_topk import values

LOOKS_AT_VALUES = True


def why_not(logits: Tensor, seed: Tensor) -> str | None:
    return None if logits.device.type == "cpu" else f"it runs on CPU tensors and logits is on {logits.device}"


def forward(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, positive_weights: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    batch, prompts = logits.shape
    logits = logits.contiguous()
    shape = (num_negatives, batch, k)
    weights, indices = logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)
    valid = core().route_negatives(
        logits.data_ptr(),
        seed.data_ptr(),
        weights.data_ptr(),
        indices.data_ptr(),
        batch,
        prompts,
        k,
        num_negatives,
        positive_weights,
        renormalize,
        DTYPE_CODES[logits.dtype],
        torch.get_num_threads(),
    )
    if not valid:
        values.check(logits)
    return weights, indices
