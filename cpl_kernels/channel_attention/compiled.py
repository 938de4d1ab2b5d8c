"""What the two compiled backends of channel_attention share: checking out memory and calling the core."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES

MIN_NORM = 1e-12  # csrc/channel_attention/math.h


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    if temperature.dtype == torch.float64 and qkv.dtype != torch.float64:
        return f"it computes in float32 for {qkv.dtype} images, and temperature is float64"
    return None


def forward(
    kernel: Callable[..., None], qkv: Tensor, temperature: Tensor, *where: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``where``: the kernel's last arguments, the number of threads, or scratch memory and the CUDA stream."""
    batch, heads, width = len(qkv), temperature.shape[0], qkv.shape[1] // 3 // temperature.shape[0]
    y = layout.empty_like(qkv, heads * width)
    q_norm = torch.empty((batch, heads * width), dtype=wide(qkv.dtype), device=qkv.device)
    k_norm = torch.empty_like(q_norm)
    cosines = q_norm.new_empty(batch, heads, width, width)
    if not y.numel():  # sums over nothing
        return y, q_norm.fill_(MIN_NORM), k_norm.fill_(MIN_NORM), cosines.zero_()
    qkv = layout.readable(qkv)
    temperature = temperature.to(q_norm.dtype).contiguous()
    kernel(
        layout.view(qkv),
        layout.view(y),
        temperature.data_ptr(),
        q_norm.data_ptr(),
        k_norm.data_ptr(),
        cosines.data_ptr(),
        batch,
        heads,
        width,
        y.shape[2] * y.shape[3],
        DTYPE_CODES[qkv.dtype],
        *where,
    )
    return y, q_norm, k_norm, cosines


def backward(
    kernel: Callable[..., None],
    dy: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cosines: Tensor,
    *where: int,
) -> tuple[Tensor, Tensor]:
    batch, heads, width, _ = cosines.shape
    dqkv = layout.empty_like(qkv)
    if not dqkv.numel():  # a sum over nothing
        return dqkv, cosines.new_zeros(temperature.shape)
    dtemperature = cosines.new_empty(temperature.shape)
    qkv, dy = layout.readable(qkv), layout.readable(dy)
    temperature = temperature.to(cosines.dtype).contiguous()
    kernel(
        layout.view(dy),
        layout.view(qkv),
        layout.view(dqkv),
        temperature.data_ptr(),
        q_norm.data_ptr(),
        k_norm.data_ptr(),
        cosines.data_ptr(),
        dtemperature.data_ptr(),
        batch,
        heads,
        width,
        dqkv.shape[2] * dqkv.shape[3],
        DTYPE_CODES[qkv.dtype],
        *where,
    )
    return dqkv, dtemperature
