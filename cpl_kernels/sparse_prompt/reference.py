"""sparse_prompt in plain PyTorch: the two definitions, one after the other."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.aggregate_prompts.reference import aggregate_prompts
from cpl_kernels.route_topk.reference import route_topk


def sparse_prompt(
    logits: Tensor, prompts: Tensor, k: int, height: int, width: int, renormalize: bool
) -> Tensor:
    """The definition; differentiable any number of times."""
    weights, indices = route_topk(logits, k, renormalize)
    return aggregate_prompts(weights, indices, prompts, height, width)


def why_not(logits: Tensor, prompts: Tensor) -> str | None:
    return None
