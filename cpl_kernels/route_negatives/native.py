"""route_negatives in C++ for CPU tensors (csrc/route_negatives/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core
from cpl_kernels.route_negatives import compiled
from cpl_kernels.route_topk import values

LOOKS_AT_VALUES = True


def why_not(logits: Tensor, seed: Tensor) -> str | None:
    return None


def forward(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, positive_weights: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    weights, indices, valid = compiled.forward(
        core().route_negatives,
        logits,
        seed,
        k,
        num_negatives,
        positive_weights,
        renormalize,
        torch.get_num_threads(),
    )
    if not valid:
        values.check(logits)
    return weights, indices
