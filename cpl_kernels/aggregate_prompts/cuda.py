"""aggregate_prompts in CUDA C++ for CUDA tensors (csrc/aggregate_prompts/cuda.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.aggregate_prompts import compiled
from cpl_kernels.core import core, stream_of


def why_not(weights: Tensor, indices: Tensor, prompts: Tensor) -> str | None:
    if weights.dtype == torch.float64 and prompts.dtype != torch.float64:
        return f"it computes in float32 for {prompts.dtype} prompts, and weights is float64"
    return None


def forward(weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int) -> Tensor:
    kernel, stream = core().aggregate_prompts_forward_cuda, stream_of(prompts)
    return compiled.forward(kernel, weights, indices, prompts, height, width, stream)


def backward(
    dy: Tensor, weights: Tensor, indices: Tensor, prompts: Tensor, need_weights: bool, need_prompts: bool
) -> tuple[Tensor, Tensor]:
    planes = core().aggregate_prompts_planes(*prompts.shape[1:], *dy.shape[2:]) if need_weights else 0
    wide = torch.float64 if prompts.dtype == torch.float64 else torch.float32
    partial = prompts.new_empty((indices.numel(), planes), dtype=wide)
    kernel, stream = core().aggregate_prompts_backward_cuda, stream_of(prompts)
    return compiled.backward(
        kernel, dy, weights, indices, prompts, need_weights, need_prompts, partial.data_ptr(), stream
    )
