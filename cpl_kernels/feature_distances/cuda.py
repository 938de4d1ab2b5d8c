"""feature_distances in CUDA C++ for CUDA tensors (csrc/feature_distances/cuda.cu)."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.core import core, stream_of
from cpl_kernels.feature_distances import compiled


def why_not(anchor: Tensor, others: Tensor) -> str | None:
    return None


def forward(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    kernel, stream = core().feature_distances_forward_cuda, stream_of(anchor)
    scratch = core().feature_distances_scratch
    return compiled.forward(kernel, anchor, others, p, normalize, stream, scratch)


def backward(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
) -> tuple[Tensor, Tensor]:
    kernel, stream = core().feature_distances_backward_cuda, stream_of(anchor)
    scratch = core().feature_distances_scratch
    return compiled.backward(
        kernel, dy, anchor, others, p, normalize, need_anchor, need_others, stream, scratch
    )
