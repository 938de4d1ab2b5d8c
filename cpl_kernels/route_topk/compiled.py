"""What the two compiled backends of route_topk share: making memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES


def forward(
    kernel: Callable[..., bool | None], logits: Tensor, k: int, renormalize: bool, where: int
) -> tuple[Tensor, Tensor, bool | None]:
    """``where`` is the kernel's last argument: the number of threads, or the CUDA stream. Its result comes last."""
    batch, prompts = logits.shape
    logits = logits.contiguous()
    weights, indices = logits.new_empty(batch, k), logits.new_empty((batch, k), dtype=torch.int64)
    valid = kernel(
        logits.data_ptr(),
        weights.data_ptr(),
        indices.data_ptr(),
        batch,
        prompts,
        k,
        renormalize,
        DTYPE_CODES[logits.dtype],
        where,
    )
    return weights, indices, valid


def backward(
    kernel: Callable[..., None],
    dweights: Tensor,
    logits: Tensor,
    indices: Tensor,
    renormalize: bool,
    where: int,
) -> Tensor:
    batch, prompts = logits.shape
    dlogits = logits.new_empty(batch, prompts)
    dweights, logits, indices = dweights.contiguous(), logits.contiguous(), indices.contiguous()
    kernel(
        dweights.data_ptr(),
        logits.data_ptr(),
        indices.data_ptr(),
        dlogits.data_ptr(),
        batch,
        prompts,
        indices.shape[1],
        renormalize,
        DTYPE_CODES[logits.dtype],
        where,
    )
    return dlogits
