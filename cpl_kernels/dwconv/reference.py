"""dwconv in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpl_kernels.autocast import wide


def dwconv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition; differentiable any number of times."""
    dtype = accumulation_dtype(x, weight, bias)
    if x.numel() == 0:
        return x  # conv2d refuses H = 0
    bias = None if bias is None else bias.to(dtype)
    return F.conv2d(x.to(dtype), weight.to(dtype), bias, padding=padding(weight), groups=x.shape[1]).to(
        x.dtype
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return dwconv(x, weight, bias).clone(memory_format=torch.contiguous_format)


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx in the dtype of x, and dweight and dbias in fp32 or better; ``bias`` only says of which dtype."""
    dtype = accumulation_dtype(x, weight, bias)
    wide_x, wide_dy, weight = x.to(dtype).contiguous(), dy.to(dtype), weight.to(dtype)
    if x.numel() == 0:
        return torch.zeros_like(wide_x, dtype=x.dtype), torch.zeros_like(weight), weight.new_zeros(x.shape[1])
    border = [padding(weight)] * 2
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        wide_dy, wide_x, weight, None, [1, 1], border, [1, 1], False, [0, 0], x.shape[1], [True, True, False]
    )
    return dx.contiguous().to(x.dtype), dweight.contiguous(), wide_dy.sum(dim=(0, 2, 3))


def padding(weight: Tensor) -> int:
    """The zeros on each side of x that keep H and W."""
    return weight.shape[-1] // 2


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    return None


def accumulation_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """float32, or float64 where an input is; dweight and dbias come back in it."""
    return wide(x.dtype, weight.dtype, torch.float32 if bias is None else bias.dtype)
