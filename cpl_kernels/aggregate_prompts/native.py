"""aggregate_prompts in C++ for CPU tensors (csrc/aggregate_prompts/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import DTYPE_CODES, core

LOOKS_AT_VALUES = True  # the core refuses an index out of range before it reads through it


def why_not(weights: Tensor, indices: Tensor, prompts: Tensor) -> str | None:
    if prompts.device.type != "cpu":
        return f"it runs on CPU tensors and prompts is on {prompts.device}"
    if weights.dtype == torch.float64 and prompts.dtype != torch.float64:
        return f"it computes in float32 for {prompts.dtype} prompts, and weights is float64"
    return None


def forward(weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int) -> Tensor:
    batch, chosen = weights.shape
    count, channels, source_height, source_width = prompts.shape
    y = prompts.new_empty((batch, channels, height, width))
    weights, indices, prompts = weights.contiguous(), indices.contiguous(), prompts.contiguous()
    core().aggregate_prompts_forward(
        weights.data_ptr(),
        indices.data_ptr(),
        prompts.data_ptr(),
        y.data_ptr(),
        batch,
        chosen,
        count,
        channels,
        source_height,
        source_width,
        height,
        width,
        DTYPE_CODES[weights.dtype],
        DTYPE_CODES[prompts.dtype],
        torch.get_num_threads(),
    )
    return y


def backward(
    dy: Tensor, weights: Tensor, indices: Tensor, prompts: Tensor, need_weights: bool, need_prompts: bool
) -> tuple[Tensor, Tensor]:
    batch, chosen = weights.shape
    count, channels, source_height, source_width = prompts.shape
    dweights = weights.new_empty((batch, chosen) if need_weights else 0)
    dprompts = prompts.new_empty(prompts.shape if need_prompts else 0)
    dy, weights, indices = dy.contiguous(), weights.contiguous(), indices.contiguous()
    prompts = prompts.contiguous()
    core().aggregate_prompts_backward(
        dy.data_ptr(),
        weights.data_ptr(),
        indices.data_ptr(),
        prompts.data_ptr(),
        dweights.data_ptr() if need_weights else 0,
        dprompts.data_ptr() if need_prompts else 0,
        batch,
        chosen,
        count,
        channels,
        source_height,
        source_width,
        dy.shape[2],
        dy.shape[3],
        DTYPE_CODES[weights.dtype],
        DTYPE_CODES[prompts.dtype],
        torch.get_num_threads(),
    )
    return dweights, dprompts
