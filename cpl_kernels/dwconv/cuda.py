"""dwconv in CUDA C++ for CUDA tensors (csrc/dwconv/cuda.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core, stream_of
from cpl_kernels.dwconv import compiled


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return compiled.why_not(x, weight, bias)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    stream = stream_of(x)
    return compiled.forward(core().dwconv_forward_cuda, x, weight, bias, stream)


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    elements = core().dwconv_partial(*x.shape, weight.shape[-1])
    # Held until the launches are made: the allocator keeps it for work on this stream.
    partial = x.new_empty(elements, dtype=torch.promote_types(x.dtype, torch.float32))
    where = partial.data_ptr(), stream_of(x)
    return compiled.backward(core().dwconv_backward_cuda, dy, x, weight, *where)
