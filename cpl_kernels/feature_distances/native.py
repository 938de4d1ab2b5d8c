"""feature_distances in C++ for CPU tensors (csrc/feature_distances/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core
from cpl_kernels.feature_distances import compiled


def why_not(anchor: Tensor, others: Tensor) -> str | None:
    return None


def forward(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    kernel, threads = core().feature_distances_forward, torch.get_num_threads()
    return compiled.forward(kernel, anchor, others, p, normalize, threads)


def backward(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
) -> tuple[Tensor, Tensor]:
    kernel, threads = core().feature_distances_backward, torch.get_num_threads()
    return compiled.backward(kernel, dy, anchor, others, p, normalize, need_anchor, need_others, threads)
