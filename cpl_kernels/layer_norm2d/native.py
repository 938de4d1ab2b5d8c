"""layer_norm2d in C++ for CPU tensors (csrc/layer_norm2d/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
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
    return _backward(dy, x, weight, mean, rstd, center, 0, layout.NOWHERE)


def backward_and_output(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor, rstd: Tensor, center: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = layout.empty_like(x)
    bias = None if bias is None else bias.to(mean.dtype).contiguous()
    where = 0 if bias is None else bias.data_ptr()
    return *_backward(
        dy, x, weight, mean, rstd, center, where, layout.view(y) if y.numel() else layout.NOWHERE
    ), y


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    center: bool,
    bias: int,
    y: layout.View,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = core().layer_norm2d_backward
    return compiled.backward(kernel, dy, x, weight, mean, rstd, center, bias, y, torch.get_num_threads())
