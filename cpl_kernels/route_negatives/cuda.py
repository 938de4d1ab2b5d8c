"""route_negatives in CUDA C++ for CUDA tensors (csrc/route_negatives/cuda.cu)."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.core import core, stream_of
from cpl_kernels.route_negatives import compiled

_MAX_PROMPTS = (
    4096  # 4 N + 8 k bytes of shared memory, k <= N / 2, within the 48 KiB that a block may have unasked
)


def why_not(logits: Tensor, seed: Tensor) -> str | None:
    if logits.shape[1] > _MAX_PROMPTS:
        return f"it serves up to {_MAX_PROMPTS} prompts and logits has {logits.shape[1]}"
    return None


def forward(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, positive_weights: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    kernel, stream = core().route_negatives_cuda, stream_of(logits)
    options = (k, num_negatives, positive_weights, renormalize)
    return compiled.forward(kernel, logits, seed, *options, stream)[:2]
