"""The Sparse Prompt Module's prompt: routed, mixed and resized in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.aggregate_prompts import aggregate_prompts
from cpl_kernels.route_topk import route_topk

__all__ = ["sparse_prompt"]


@overload
def sparse_prompt(
    logits: Tensor,
    prompts: Tensor,
    k: int,
    size: int | Sequence[int] | None = None,
    normalize: str = "none",
    *,
    return_used: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def sparse_prompt(
    logits: Tensor,
    prompts: Tensor,
    k: int,
    size: int | Sequence[int] | None = None,
    normalize: str = "none",
    *,
    return_used: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def sparse_prompt(
    logits: Tensor,
    prompts: Tensor,
    k: int,
    size: int | Sequence[int] | None = None,
    normalize: str = "none",
    *,
    return_used: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Choose k of N prompts by their logits, mix them by their softmax weights and resize the mixture.

        weights, indices = route_topk(logits, k, normalize)
        y = aggregate_prompts(weights, indices, prompts, size)

    It is these two calls; each picks its backend by itself, and a named backend must serve both.

    Args:
        logits: [B, N], as for route_topk.
        prompts: [N, C, S_h, S_w], as for aggregate_prompts.
        k: how many prompts to mix, 1 <= k <= N.
        size: (H, W), one int for both, or None for that of the prompts.
        normalize: "none", "topk" or "straight_through", as for route_topk.
        return_used: give the mask of the prompts that were chosen as well, as aggregate_prompts does.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of prompts; with ``return_used`` a pair, the second [N], bool.

    Raises:
        TypeError, ValueError, RuntimeError: as route_topk and aggregate_prompts; ValueError if the
            number of logits is not the number of prompts.

    Source: Wu et al., arXiv 2504.09973, the Sparse Prompt Module.
    """
    request = backends.requested("sparse_prompt", backend) or None
    for name, value, layout in (("logits", logits, "[B, N]"), ("prompts", prompts, "[N, C, S, S]")):
        checks.tensor(name, value)
        checks.rank(name, value, layout)
    if checks.sizes(logits)[1] != checks.sizes(prompts)[0]:  # the rest is for the two calls to check
        raise ValueError(
            f"logits {tuple(logits.shape)} is for N = {logits.shape[1]} prompts, "
            f"but prompts {tuple(prompts.shape)} holds {prompts.shape[0]}"
        )
    weights, indices = route_topk(logits, k, normalize, backend=request)
    if return_used:
        return aggregate_prompts(weights, indices, prompts, size, return_used=True, backend=request)
    return aggregate_prompts(weights, indices, prompts, size, backend=request)
