"""What the two compiled backends of layer_norm2d share: checking out memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.core import DTYPE_CODES


def forward(
    kernel: Callable[..., None],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    center: bool,
    where: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``where`` is the kernel's last argument: the number of threads, or the CUDA stream."""
    y = layout.empty_like(x)
    x = layout.readable(x)
    batch, channels, height, width = x.shape
    wide = _arithmetic(x)
    mean = torch.empty((batch, height, width), dtype=wide, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel():
        weight, bias = weight.to(wide).contiguous(), None if bias is None else bias.to(wide).contiguous()
        kernel(
            layout.view(x),
            layout.view(y),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            mean.data_ptr(),
            rstd.data_ptr(),
            batch,
            channels,
            height * width,
            eps,
            center,
            DTYPE_CODES[x.dtype],
            where,
        )
    return y, mean, rstd


def backward(
    kernel: Callable[..., None],
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    center: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """``rest``: the kernel's last arguments, in which the two backends differ."""
    dx = layout.empty_like(x)
    x = layout.readable(x)
    dy = layout.readable_as(dy, x)
    batch, channels, height, width = x.shape
    wide = _arithmetic(x)
    if not x.numel():  # a sum over nothing
        return dx, weight.new_zeros(channels, dtype=wide), weight.new_zeros(channels, dtype=wide)
    weight = weight.to(wide).contiguous()
    dweight, dbias = torch.empty_like(weight), torch.empty_like(weight)
    kernel(
        layout.view(dy),
        layout.view(x),
        layout.view(dx),
        weight.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        batch,
        channels,
        height * width,
        center,
        DTYPE_CODES[x.dtype],
        *rest,
    )
    return dx, dweight, dbias


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
