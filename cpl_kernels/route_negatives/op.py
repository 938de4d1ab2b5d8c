"""route_negatives for torch: schema and fake. It has no derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import backends
from cpl_kernels.registration import register
from cpl_kernels.route_topk import values


def _forward(
    logits: Tensor,
    seed: Tensor,
    k: int,
    num_negatives: int,
    positive_weights: bool,
    renormalize: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = backends.select("route_negatives", backend, logits, seed)
    if not values.looked_at_by(chosen):
        values.check(logits)
    return chosen.forward(logits, seed, k, num_negatives, positive_weights, renormalize)


def _forward_fake(
    logits: Tensor,
    seed: Tensor,
    k: int,
    num_negatives: int,
    positive_weights: bool,
    renormalize: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    weights = logits.new_empty(num_negatives, logits.shape[0], k)
    return weights, torch.empty_like(weights, dtype=torch.int64)


route_negatives = register(
    "route_negatives",
    "(Tensor logits, Tensor seed, int k, int num_negatives, bool positive_weights, bool renormalize,"
    " str backend) -> (Tensor, Tensor)",
    impl=_forward,
    fake=_forward_fake,
)
