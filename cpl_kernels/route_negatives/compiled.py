"""What the two compiled backends of route_negatives share: making memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES


def forward(
    kernel: Callable[..., bool | None],
    logits: Tensor,
    seed: Tensor,
    k: int,
    num_negatives: int,
    positive_weights: bool,
    renormalize: bool,
    where: int,
) -> tuple[Tensor, Tensor, bool | None]:
    """``where`` is the kernel's last argument: the number of threads, or the CUDA stream. Its result comes last."""
    batch, prompts = logits.shape
    logits = logits.contiguous()
    shape = (num_negatives, batch, k)
    weights, indices = logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)
    valid = kernel(
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
        where,
    )
    return weights, indices, valid
