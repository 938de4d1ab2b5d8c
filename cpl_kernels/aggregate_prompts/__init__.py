"""The weighted sum of the chosen prompts, resized to the feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.aggregate_prompts import op as _op

__all__ = ["aggregate_prompts"]


@overload
def aggregate_prompts(
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    return_used: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def aggregate_prompts(
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    return_used: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def aggregate_prompts(
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    size: int | Sequence[int] | None = None,
    *,
    return_used: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mix the prompts that were chosen for each image and resize the mixture.

        y[b] = resize(sum_i weights[b, i] * prompts[indices[b, i]])

    where resize is bilinear interpolation with align_corners=False and no antialiasing, exactly
    torch.nn.functional.interpolate(..., mode="bilinear"); it is linear, so mixing first is the same
    as resizing each prompt. An index may occur more than once in a row; its weights then add up. The
    dense prompts of PromptIR are k = N.

    Args:
        weights: [B, k], any strides; float32, bfloat16, float16 or float64. k = 0 gives zeros.
        indices: [B, k], int64, each from 0 to N-1; as of route_topk.
        prompts: [N, C, S_h, S_w], no dimension of size 0; usually square. Its dtype may differ
            from that of weights.
        size: (H, W), one int for both, or None for that of the prompts.
        return_used: give the mask of the prompts that were chosen as well. The others' gradients are
            exact zeros; an optimizer with momentum or weight decay would move them all the same.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [B, C, H, W] in the dtype of prompts, also under autocast; accumulated and interpolated in
        float32 (float64 if either input is float64). The gradients of weights and prompts have their
        dtypes. With ``return_used`` a pair, the second [N], bool: whether any image uses the prompt.

    Raises:
        TypeError: weights or prompts that are not floating, indices that are not int64.
        ValueError: a wrong shape or size, tensors on several devices; on the CPU an index out of
            range. On CUDA (where values are looked at only with CPL_CHECK=1) such an index gives a NaN image.
        RuntimeError: the named backend cannot serve this call.

    Source: Potlapalli et al., "PromptIR", arXiv 2306.13090, section 3.1 (dense), and the Sparse
    Prompt Module of Wu et al., arXiv 2504.09973.
    """
    checks.floating("weights", weights)
    checks.rank("weights", weights, "[B, k]")
    checks.tensor("indices", indices)
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}; use indices.long()")
    checks.shape("indices", indices, checks.sizes(weights), "the shape [B, k] of weights")
    checks.floating("prompts", prompts)
    checks.rank("prompts", prompts, "[N, C, S, S]")
    if 0 in checks.sizes(prompts):
        raise ValueError(f"prompts must have no dimension of size 0, got shape {tuple(prompts.shape)}")
    checks.same_device(weights=weights, indices=indices, prompts=prompts)
    height, width = _size(size, prompts)
    request = backends.requested("aggregate_prompts", backend)
    run = _op.aggregate_prompts_traced if checks.traced_sizes((height, width)) else _op.aggregate_prompts
    y = run(weights, indices, prompts, height, width, request)
    if not return_used:
        return y
    every = torch.arange(prompts.shape[0], device=indices.device)
    return y, (indices.reshape(-1, 1) == every).any(dim=0)  # no scatter: nothing to race, nothing to sync


def _size(size: int | Sequence[int] | None, prompts: Tensor) -> tuple[int, int]:
    if size is None:
        return prompts.shape[2], prompts.shape[3]
    pair = (size, size) if isinstance(size, (int, torch.SymInt)) else tuple(size)
    if checks.traced_sizes(pair) and len(pair) == 2:
        return pair
    if len(pair) != 2 or not all(isinstance(n, (int, torch.SymInt)) for n in pair) or min(pair) < 1:
        raise ValueError(f"size must be None, a positive int or two of them (H, W), got {size!r}")
    return pair
