"""channel_attention in C++ for CPU tensors (csrc/channel_attention/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import layout
from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES, core

MIN_NORM = 1e-12


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    if temperature.dtype == torch.float64 and qkv.dtype != torch.float64:
        return f"it computes in float32 for {qkv.dtype} images, and temperature is float64"
    return None


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = qkv.shape
    channels, heads = channels // 3, temperature.shape[0]
    each, dtype = channels // heads, wide(qkv.dtype)
    y = layout.empty_like(qkv, channels)
    q_norm, k_norm = (qkv.new_empty(batch, channels, dtype=dtype) for _ in range(2))
    cosines = qkv.new_empty(batch, heads, each, each, dtype=dtype)
    if not y.numel():  # sums over nothing
        return y, q_norm.fill_(MIN_NORM), k_norm.fill_(MIN_NORM), cosines.zero_()
    qkv = layout.readable(qkv)
    temperature = temperature.to(dtype).contiguous()
    core().channel_attention_forward(
        layout.view(qkv),
        layout.view(y),
        temperature.data_ptr(),
        q_norm.data_ptr(),
        k_norm.data_ptr(),
        cosines.data_ptr(),
        batch,
        heads,
        each,
        height * width,
        DTYPE_CODES[qkv.dtype],
        torch.get_num_threads(),
    )
    return y, q_norm, k_norm, cosines


def backward(
    dy: Tensor, qkv: Tensor, temperature: Tensor, q_norm: Tensor, k_norm: Tensor, cosines: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, each, _ = cosines.shape
    dqkv = layout.empty_like(qkv)
    dtemperature = cosines.new_zeros(temperature.shape)
    if not dqkv.numel():
        return dqkv, dtemperature
    qkv, dy = layout.readable(qkv), layout.readable(dy)
    temperature = temperature.to(cosines.dtype).contiguous()
    core().channel_attention_backward(
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
        each,
        qkv.shape[2] * qkv.shape[3],
        DTYPE_CODES[qkv.dtype],
        torch.get_num_threads(),
    )
    return dqkv, dtemperature
