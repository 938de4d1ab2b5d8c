"""layer_norm2d in C++ for CPU tensors (csrc/layer_norm2d/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core
from cpl_kernels.layer_norm2d import compiled


def why_not(x: Tensor) -> str | None:
    return None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = core().layer_norm2d_forward
    return compiled.forward(kernel, x, weight, bias, eps, center, torch.get_num_threads())


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = core().layer_norm2d_backward
    return compiled.backward(kernel, dy, x, weight, mean, rstd, center, torch.get_num_threads())
