"""pointwise_conv in plain PyTorch: the definition that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cpl_kernels import layout
from cpl_kernels.autocast import wide


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The definition; differentiable any number of times."""
    dtype = accumulation_dtype(x, weight, bias)
    # Where nothing is added to it, the product alone is rounded.
    factors = factor_dtype(x, weight) if bias is None and residual is None else dtype
    if x.numel():
        y = F.conv2d(x.to(factors), weight.to(factors))
    else:  # conv2d refuses H = 0
        y = x.new_zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for term in (None if bias is None else bias[:, None, None], residual):
        if term is not None:
            y = y.to(dtype) + term
    return y.to(x.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    y = pointwise_conv(x, weight, bias, residual)
    return y.contiguous(memory_format=layout.output_format(x))


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dx in the dtype and layout of x, dweight and dbias in fp32 or better; what is not needed is empty."""
    dtype, factors = accumulation_dtype(x, weight), factor_dtype(x, weight)
    dx, dweight, dbias = unneeded(x, weight)
    if need_x:  # the convolution with the weight turned
        dx = forward(dy.to(factors), weight.to(factors).transpose(0, 1), None, None)
        dx = dx.to(x.dtype).contiguous(memory_format=layout.output_format(x))
    if need_weight:
        if x.numel():
            _, dweight, _ = torch.ops.aten.convolution_backward(
                dy.to(factors), x.to(factors), weight.to(factors), None,
                [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False],
            )  # fmt: skip
        else:
            dweight = torch.zeros_like(weight)
        dweight = dweight.to(dtype).contiguous()
    if need_bias:
        dbias = dy.to(dtype).sum(dim=(0, 2, 3))
    return dx, dweight, dbias


def unneeded(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias where nobody needs them."""
    dtype = accumulation_dtype(x, weight)
    return x.new_empty(0), x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)


def factor_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """What torch multiplies in: 16 bits where both are of the same 16 (it sums in float32), else the wider."""
    return x.dtype if x.dtype == weight.dtype else accumulation_dtype(x, weight)


def why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> str | None:
    return None


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float32, or float64 where an input is; dweight and dbias come back in it."""
    return wide(*(t.dtype for t in tensors if t is not None))
