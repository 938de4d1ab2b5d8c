"""gated_dwconv in C++ for CPU tensors (csrc/gated_dwconv/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.core import core
from cpl_kernels.gated_dwconv import compiled


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return compiled.why_not(x, weight, bias)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return compiled.forward(core().gated_dwconv_forward, x, weight, bias, gelu, torch.get_num_threads())


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(dy, x, weight, bias, gelu, layout.NOWHERE)


def backward_and_output(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, channels // 2, height, width)
    return *_backward(dy, x, weight, bias, gelu, layout.view(y) if y.numel() else layout.NOWHERE), y


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, y: layout.View
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = core().gated_dwconv_backward
    return compiled.backward(kernel, dy, x, weight, bias, gelu, y, torch.get_num_threads())
