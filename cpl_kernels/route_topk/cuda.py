"""route_topk in CUDA C++ for CUDA tensors (csrc/route_topk/cuda.cu)."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.core import core, stream_of
from cpl_kernels.route_topk import compiled


def why_not(logits: Tensor) -> str | None:
    return None


def forward(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    kernel, stream = core().route_topk_forward_cuda, stream_of(logits)
    return compiled.forward(kernel, logits, k, renormalize, stream)[:2]


def backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    kernel, stream = core().route_topk_backward_cuda, stream_of(logits)
    return compiled.backward(kernel, dweights, logits, indices, renormalize, stream)
