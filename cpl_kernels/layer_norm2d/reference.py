"""layer_norm2d in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over channels, [B, H, W] each, in fp32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=1)  # [B, H, W]
    variance = (x - mean.unsqueeze(1)).square().mean(dim=1)  # [B, H, W]
    return mean, (variance + eps).rsqrt()


def layer_norm2d(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool) -> Tensor:
    """The definition; differentiable any number of times."""
    mean, rstd = statistics(x, eps)
    wide = x.to(mean.dtype)
    if center:
        wide = wide - mean.unsqueeze(1)
    y = wide * rstd.unsqueeze(1) * _per_channel(weight, wide)
    if bias is not None:
        y = y + _per_channel(bias, wide)
    return y.to(x.dtype)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, and mean and rstd for the backward."""
    mean, rstd = statistics(x, eps)
    y = layer_norm2d(x, weight, bias, eps, center)
    return y.contiguous(memory_format=layout.output_format(x)), mean.contiguous(), rstd.contiguous()


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx in x's dtype, and dweight and dbias in the dtype of the statistics.

    With h = (x - mean) * rstd, g = dy * weight and <.> the mean over channels:
        center:      dx = rstd * (g - <g> - h * <g h>)
        not center:  dx = rstd * (g - h * <g x rstd>)
    The second differs because y = x * rstd * weight still has the mean in it, while rstd does not.
    """
    wide, g = x.to(mean.dtype), dy.to(mean.dtype)
    mean, rstd = mean.unsqueeze(1), rstd.unsqueeze(1)  # [B, 1, H, W]
    h = (wide - mean) * rstd
    y_hat = h if center else wide * rstd  # what weight multiplies
    dweight = (g * y_hat).sum(dim=(0, 2, 3))
    dbias = g.sum(dim=(0, 2, 3))
    g = g * _per_channel(weight, wide)
    dx = g - h * (g * y_hat).mean(dim=1, keepdim=True)
    if center:
        dx = dx - g.mean(dim=1, keepdim=True)
    dx = (dx * rstd).to(x.dtype)
    return dx.contiguous(memory_format=layout.output_format(x)), dweight, dbias


def why_not(x: Tensor) -> str | None:
    return None


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)[:, None, None]
