"""aggregate_prompts in C++ for CPU tensors (csrc/aggregate_prompts/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.aggregate_prompts import compiled
from cpl_kernels.core import core

LOOKS_AT_VALUES = True  # the core refuses an index out of range before it reads through it


def why_not(weights: Tensor, indices: Tensor, prompts: Tensor) -> str | None:
    if weights.dtype == torch.float64 and prompts.dtype != torch.float64:
        return f"it computes in float32 for {prompts.dtype} prompts, and weights is float64"
    return None


def forward(weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int) -> Tensor:
    kernel = core().aggregate_prompts_forward
    return compiled.forward(kernel, weights, indices, prompts, height, width, torch.get_num_threads())


def backward(
    dy: Tensor, weights: Tensor, indices: Tensor, prompts: Tensor, need_weights: bool, need_prompts: bool
) -> tuple[Tensor, Tensor]:
    kernel, threads = core().aggregate_prompts_backward, torch.get_num_threads()
    return compiled.backward(kernel, dy, weights, indices, prompts, need_weights, need_prompts, threads)
