"""gated_dwconv in CUDA C++ for CUDA tensors (csrc/gated_dwconv/cuda.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core, stream_of
from cpl_kernels.gated_dwconv import compiled


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return compiled.why_not(x, weight, bias)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    stream = stream_of(x)
    return compiled.forward(core().gated_dwconv_forward_cuda, x, weight, bias, gelu, stream)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    elements = core().gated_dwconv_partial(batch, channels // 2, height, width)
    # Held until the launches are made: the allocator keeps it for work on this stream.
    partial = x.new_empty(elements, dtype=torch.promote_types(x.dtype, torch.float32))
    where = partial.data_ptr(), stream_of(x)
    return compiled.backward(core().gated_dwconv_backward_cuda, dy, x, weight, bias, gelu, *where)
