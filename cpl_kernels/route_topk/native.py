"""route_topk in C++ for CPU tensors (csrc/route_topk/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.core import core
from cpl_kernels.route_topk import compiled, values

LOOKS_AT_VALUES = True


def why_not(logits: Tensor) -> str | None:
    return None


def forward(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    threads = torch.get_num_threads()
    weights, indices, valid = compiled.forward(core().route_topk_forward, logits, k, renormalize, threads)
    if not valid:
        values.check(logits)
    return weights, indices


def backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool) -> Tensor:
    kernel, threads = core().route_topk_backward, torch.get_num_threads()
    return compiled.backward(kernel, dweights, logits, indices, renormalize, threads)
