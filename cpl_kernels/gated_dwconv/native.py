"""gated_dwconv in C++ for CPU tensors (csrc/gated_dwconv/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.core import DTYPE_CODES, core


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype == torch.float64 and x.dtype != torch.float64:
            return f"it computes in float32 for {x.dtype} images, and {name} is float64"
    return None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    batch, channels, height, width = x.shape
    y = x.new_empty(batch, channels // 2, height, width)
    if y.numel():
        x, weight = _planar(x), _parameter(weight, x)
        bias = None if bias is None else _parameter(bias, x)
        core().gated_dwconv_forward(
            layout.view(x),
            layout.view(y),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            batch,
            channels // 2,
            height,
            width,
            gelu,
            DTYPE_CODES[x.dtype],
            torch.get_num_threads(),
        )
    return y


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    dx = x.new_empty(*x.shape)
    weight, bias = _parameter(weight, x), None if bias is None else _parameter(bias, x)
    if not x.numel():  # a sum over nothing
        return dx, torch.zeros_like(weight), weight.new_zeros(channels)
    dy, x = _planar(dy), _planar(x)
    dweight, dbias = torch.empty_like(weight), weight.new_empty(channels)
    core().gated_dwconv_backward(
        layout.view(dy),
        layout.view(x),
        layout.view(dx),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        batch,
        channels // 2,
        height,
        width,
        gelu,
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return dx, dweight, dbias


def _planar(x: Tensor) -> Tensor:
    return x if layout.is_planar(x) else x.contiguous()


def _parameter(value: Tensor, x: Tensor) -> Tensor:
    return value.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
