"""feature_distances in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.feature_distances.memory import gradient_like

MIN_NORM = 1e-12  # a channel vector no longer than this is taken for zero


def feature_distances(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    """The definition; differentiable any number of times."""
    dtype = wide(anchor.dtype, others.dtype)
    a, rest = anchor.to(dtype), others.to(dtype)
    if normalize:
        a, rest = _unit(a, 1)[0], _unit(rest, 2)[0]
    difference = (a - rest).flatten(2) if a.dim() > 1 else (a - rest).unsqueeze(2)  # [K, B, elements]
    return (difference.abs() if p == 1 else difference.square()).mean(dim=2)


def forward(anchor: Tensor, others: Tensor, p: int, normalize: bool) -> Tensor:
    return feature_distances(anchor, others, p, normalize).contiguous()


def backward(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
) -> tuple[Tensor, Tensor]:
    """Returns danchor and dothers in their tensors' dtypes; one not needed is of shape [0].

    With M elements per image and e = a - o_k (a, o_k normalised if asked):
        do_k = -dy[k, b] / M * (sign(e) if p = 1 else 2 e),   da = -sum_k do_k
    and through x^ = x / ||x||:  dx = (dx^ - x^ <x^, dx^>) / ||x||, 0 where x^ = 0.
    """
    dtype = wide(anchor.dtype, others.dtype)
    a, a_norm = _maybe_unit(anchor.to(dtype), normalize)
    scale = dy.to(dtype) / max(1, anchor[:1].numel())  # [K, B]
    da = torch.zeros_like(a, memory_format=torch.contiguous_format)
    dothers = gradient_like(others, 2) if need_others else others.new_empty(0)
    for k in range(others.shape[0]):
        o, o_norm = _maybe_unit(others[k].to(dtype), normalize)
        e = a - o
        g = (e.sign() if p == 1 else 2 * e) * scale[k].view([-1] + [1] * (a.dim() - 1))
        da += g
        if need_others:
            dothers[k] = _through_unit(-g, o, o_norm)
    if not need_anchor:
        return anchor.new_empty(0), dothers
    return gradient_like(anchor, 1).copy_(_through_unit(da, a, a_norm)), dothers


def why_not(anchor: Tensor, others: Tensor) -> str | None:
    return None


def _unit(x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """x over its norm along a dimension, and the norm: infinite where x is too short to have a direction."""
    norm = x.norm(dim=channels, keepdim=True)
    norm = torch.where(norm > MIN_NORM, norm, torch.inf)
    return x / norm, norm


def _maybe_unit(x: Tensor, normalize: bool) -> tuple[Tensor, Tensor | None]:
    return _unit(x, 1) if normalize else (x, None)


def _through_unit(dx: Tensor, x_hat: Tensor, norm: Tensor | None) -> Tensor:
    if norm is None:
        return dx
    return (dx - x_hat * (x_hat * dx).sum(dim=1, keepdim=True)) / norm
