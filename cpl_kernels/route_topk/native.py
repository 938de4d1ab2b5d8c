"""route_topk in C++ for CPU tensors (csrc/route_topk/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.route_topk import values

LOOKS_AT_VALUES = True


def why_not(logits: Tensor) -> str | None:
    return None if logits.device.type == "cpu" else f"it runs on CPU tensors and logits is on {logits.device}"


def forward(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    batch, prompts = logits.shape
    logits = logits.contiguous()
    weights, indices = logits.new_empty((batch, k)), logits.new_empty((batch, k), dtype=torch.int64)
    valid = core().route_topk_forward(
        logits.data_ptr(),
        weights.data_ptr(),
        indices.data_ptr(),
        batch,
        prompts,
        k,
        renormalize,
        DTYPE_CODES[logits.dtype],
        torch.get_num_threads(),
    )
    if not valid:
        values.check(logits)
    return weights, indices


def backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    batch, prompts = logits.shape
    dlogits = logits.new_empty((batch, prompts))
    dweights, logits, indices = dweights.contiguous(), logits.contiguous(), indices.contiguous()
    core().route_topk_backward(
        dweights.data_ptr(),
        logits.data_ptr(),
        indices.data_ptr(),
        dlogits.data_ptr(),
        batch,
        prompts,
        indices.shape[1],
        renormalize,
        DTYPE_CODES[logits.dtype],
        torch.get_num_threads(),
    )
    return dlogits
