"""What the two compiled backends of dwconv share: checking out memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.core import DTYPE_CODES


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype == torch.float64 and x.dtype != torch.float64:
            return f"it computes in float32 for {x.dtype} images, and {name} is float64"
    return None


def forward(
    kernel: Callable[..., None], x: Tensor, weight: Tensor, bias: Tensor | None, where: int
) -> Tensor:
    """``where``: the kernel's last argument, the number of threads or the CUDA stream."""
    y = x.new_empty(x.shape)
    if y.numel():
        x, weight = _planar(x), _parameter(weight, x)
        bias = None if bias is None else _parameter(bias, x)
        pointers = weight.data_ptr(), 0 if bias is None else bias.data_ptr()
        kernel(
            layout.view(x), layout.view(y), *pointers, *x.shape, weight.shape[-1], DTYPE_CODES[x.dtype], where
        )
    return y


def backward(
    kernel: Callable[..., None], dy: Tensor, x: Tensor, weight: Tensor, *where: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx, weight = x.new_empty(x.shape), _parameter(weight, x)
    if not x.numel():  # a sum over nothing
        return dx, torch.zeros_like(weight), weight.new_zeros(x.shape[1])
    dy, x = _planar(dy), _planar(x)
    dweight, dbias = torch.empty_like(weight), weight.new_empty(x.shape[1])
    pointers = weight.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
    views = layout.view(dy), layout.view(x), layout.view(dx)
    kernel(*views, *pointers, *x.shape, weight.shape[-1], DTYPE_CODES[x.dtype], *where)
    return dx, dweight, dbias


def _planar(x: Tensor) -> Tensor:
    return x if layout.is_planar(x) else x.contiguous()


def _parameter(value: Tensor, x: Tensor) -> Tensor:
    return value.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
