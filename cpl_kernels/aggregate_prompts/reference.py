"""aggregate_prompts in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpl_kernels.autocast import wide


def aggregate_prompts(weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int) -> Tensor:
    """The definition; differentiable any number of times. An index out of range gives NaN."""
    dtype = wide(weights.dtype, prompts.dtype)
    indices, inside = _inside(indices, prompts.shape[0])
    weights = torch.where(inside, weights.to(dtype), torch.nan)
    mixed = prompts.new_zeros(weights.shape[:1] + prompts.shape[1:], dtype=dtype)  # [B, C, S, S]
    for i in range(weights.shape[1]):
        mixed = mixed + weights[:, i, None, None, None] * prompts[indices[:, i]].to(dtype)
    if (height, width) != tuple(prompts.shape[2:]):
        mixed = F.interpolate(mixed, (height, width), mode="bilinear", align_corners=False)
    return mixed.to(prompts.dtype)


forward = aggregate_prompts


def backward(
    dy: Tensor, weights: Tensor, indices: Tensor, prompts: Tensor, need_weights: bool, need_prompts: bool
) -> tuple[Tensor, Tensor]:
    """Returns dweights and dprompts in their tensors' dtypes; one not needed is of shape [0].

    With d = R_h^T dy R_w the gradient of the mixture (R_h, R_w: the matrices of the resize):
        dweights[b, i] = <d[b], prompts[indices[b, i]]>
        dprompts[n] = sum_{b, i} weights[b, i] [indices[b, i] = n] d[b]
    The sum over b is a product with a dense [N, B] matrix, not a scatter: its order is fixed, and
    so are its bits. torch's own backward of interpolate adds with atomics on CUDA.
    """
    dtype = wide(weights.dtype, prompts.dtype)
    count = prompts.shape[0]
    d = dy.to(dtype)
    if dy.shape[2:] != prompts.shape[2:]:
        rows = resize_matrix(dy.shape[2], prompts.shape[2], d)  # [H, S]
        columns = resize_matrix(dy.shape[3], prompts.shape[3], d)  # [W, S]
        d = rows.T @ d @ columns  # [B, C, S, S]
    dweights, dprompts = weights.new_empty(0), prompts.new_empty(0)
    indices, inside = _inside(indices, count)
    if need_weights:
        dweights = weights.new_zeros(weights.shape, dtype=dtype)
        for i in range(weights.shape[1]):
            dweights[:, i] = (d * prompts[indices[:, i]].to(dtype)).sum(dim=(1, 2, 3))
        dweights = torch.where(inside, dweights, torch.nan).to(weights.dtype)
    if need_prompts:
        hit = indices[:, :, None] == torch.arange(count, device=indices.device)  # [B, k, N]
        scattered = (hit * weights.to(dtype)[:, :, None]).sum(dim=1)  # [B, N]
        dprompts = (scattered.T @ d.flatten(1)).view(prompts.shape).to(prompts.dtype)
    return dweights, dprompts


def resize_matrix(size: int, source: int, like: Tensor) -> Tensor:
    """The [size, source] matrix of bilinear interpolation along one axis, align_corners=False."""
    centre = (torch.arange(size, device=like.device, dtype=torch.float64) + 0.5) * (source / size) - 0.5
    centre = centre.clamp(min=0)
    left = centre.floor()
    right = (left + 1).clamp(max=source - 1)
    share = (centre - left)[:, None]  # of the right neighbour
    at = torch.arange(source, device=like.device)
    return ((at == left[:, None]) * (1 - share) + (at == right[:, None]) * share).to(like.dtype)


def why_not(weights: Tensor, indices: Tensor, prompts: Tensor) -> str | None:
    return None


def _inside(indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The indices with those out of range moved to 0, so that nothing is read there, and which were fine."""
    inside = (indices >= 0) & (indices < count)
    return torch.where(inside, indices, 0), inside
