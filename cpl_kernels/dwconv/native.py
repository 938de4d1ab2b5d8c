"""dwconv in C++ for CPU tensors (csrc/dwconv/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core
from cpl_kernels.dwconv import compiled


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return compiled.why_not(x, weight, bias)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return compiled.forward(core().dwconv_forward, x, weight, bias, torch.get_num_threads())


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return compiled.backward(core().dwconv_backward, dy, x, weight, torch.get_num_threads())
