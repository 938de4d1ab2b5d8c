"""Sparse routing: a softmax over all prompts, of which the k most likely are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import autocast, backends
from cpl_kernels.route_topk import op as _op

__all__ = ["route_topk"]


def route_topk(
    logits: Tensor, k: int, normalize: str = "none", *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the k most likely of N prompts for each image.

    With p = softmax(logits[b]) over all N, and n_1, ..., n_k the indices of its k largest entries in
    descending order, equal ones in ascending order of index:

        indices[b, i] = n_i
        weights[b, i] = p[n_i]                          normalize="none": the weights as they are
        weights[b, i] = p[n_i] / sum_j p[n_j]           normalize="topk": they sum to 1
        the same, the sum a constant to the gradient    normalize="straight_through"

    The order is taken from the logits, whose order is that of p but free of the softmax's rounding,
    so every backend and dtype of accumulation chooses the same prompts. With normalize="none" the
    gradient reaches all N logits; with "topk" only those of the chosen ones, and with k=1 it is
    zero (the weight is always 1), of which a warning tells once. "straight_through" has the values of
    "topk" and the gradient of "none", over the sum: a chosen prompt enters whole, and all N logits still learn.

    Args:
        logits: [B, N], N >= 1, any strides; float32, bfloat16, float16 or float64. -inf means never.
        k: how many to choose, 1 <= k <= N.
        normalize: "none", "topk" or "straight_through".
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        weights [B, k] in the dtype of logits, under autocast float32 (float64 stays), and indices
        [B, k], int64, without gradient. The softmax is computed in float32 or better.

    Raises:
        TypeError: logits that are not floating, a k that is not an int.
        ValueError: a wrong shape, k or normalize out of range; on the CPU a row of logits that has no softmax
            (with NaN or +inf in it, or -inf throughout). On CUDA, where values are not looked at
            (CPL_CHECK=1 looks), such a row gives NaN weights and some valid indices.
        RuntimeError: the named backend cannot serve this call.

    Source: the Sparse Prompt Module of Wu et al., arXiv 2504.09973; its gate is that of Shazeer et
    al., arXiv 1701.06538, without the noise and with the softmax before the selection. Straight through:
    Bengio et al., arXiv 1308.3432.
    """
    _op.check(logits, k, normalize)
    request = backends.requested("route_topk", backend)
    logits = autocast.widen(logits)
    if normalize != "straight_through":
        return _op.route_topk(logits, k, normalize == "topk", request)
    # In float32 or better, so that the quotient is rounded once, as that of "topk" is.
    weights, indices = _op.route_topk(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), k, False, request
    )
    return (weights / weights.detach().sum(1, keepdim=True)).to(logits.dtype), indices
