"""route_negatives in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.philox import draw_distinct
from cpl_kernels.route_topk.reference import choose, weigh


def route_negatives(
    logits: Tensor, seed: Tensor, k: int, num_negatives: int, positive_weights: bool, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """The definition."""
    chosen = choose(logits, k)
    indices = draw_distinct(seed, not_chosen(chosen, logits.shape[1]), k, num_negatives)  # [K, B, k]
    if positive_weights:
        weights = weigh(logits, chosen, renormalize).expand(num_negatives, -1, -1).contiguous()
    else:
        weights = weigh(logits.expand(num_negatives, -1, -1), indices, renormalize)
    return weights.to(logits.dtype), indices


forward = route_negatives


def not_chosen(chosen: Tensor, prompts: int) -> Tensor:
    """The indices [B, N - k] that are not in ``chosen`` [B, k], ascending."""
    taken = chosen.new_zeros(chosen.shape[0], prompts).scatter(1, chosen, 1)
    return taken.sort(dim=1, stable=True).indices[:, : prompts - chosen.shape[1]]


def why_not(logits: Tensor, seed: Tensor) -> str | None:
    return None
