"""gated_dwconv in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cpl_kernels.autocast import wide


def gated_dwconv(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """The definition; differentiable any number of times."""
    a, gate = _convolve(x, weight, bias).chunk(2, dim=1)  # [B, C, H, W] each
    return ((F.gelu(a) if gelu else a) * gate).to(x.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return gated_dwconv(x, weight, bias, gelu).contiguous()


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx in the dtype of x, and dweight and dbias in fp32 or better.

    With a, g the halves of h, and Phi and pdf the normal distribution and its density:
        da = dy * g * phi'(a),  phi'(a) = Phi(a) + a pdf(a) (gelu) or 1
        dg = dy * phi(a)
    and dh = [da, dg] goes back through the convolution.
    """
    dtype = accumulation_dtype(x, weight, bias)
    x_wide, weight = x.to(dtype).contiguous(), weight.to(dtype)
    a, gate = _convolve(x_wide, weight, bias).chunk(2, dim=1)
    dy = dy.to(dtype)
    if gelu:
        below = 0.5 * torch.erfc(a * -math.sqrt(0.5))
        slope = below + a * torch.exp(-0.5 * a.square()) * (1 / math.sqrt(2 * math.pi))
        dh = torch.cat((dy * gate * slope, dy * a * below), dim=1)
    else:
        dh = torch.cat((dy * gate, dy * a), dim=1)
    if dh.numel() == 0:
        return torch.zeros_like(x_wide, dtype=x.dtype), torch.zeros_like(weight), weight.new_zeros(x.shape[1])
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dh, x_wide, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], x.shape[1], [True, True, False]
    )
    return dx.contiguous().to(x.dtype), dweight.contiguous(), dh.sum(dim=(0, 2, 3))


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return None


def accumulation_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """float32, or float64 where an input is; dweight and dbias come back in it."""
    return wide(x.dtype, weight.dtype, torch.float32 if bias is None else bias.dtype)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = accumulation_dtype(x, weight, bias)
    if x.numel() == 0:
        return x.to(dtype)  # conv2d refuses H = 0
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight.to(dtype), bias, padding=1, groups=x.shape[1])
