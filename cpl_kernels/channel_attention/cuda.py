"""channel_attention in CUDA C++ for CUDA tensors (csrc/channel_attention/cuda.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.channel_attention import compiled
from cpl_kernels.core import core, stream_of


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    return compiled.why_not(qkv, temperature)


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = core().channel_attention_forward_cuda
    scratch = _scratch(qkv, temperature)
    stream = stream_of(qkv)
    return compiled.forward(kernel, qkv, temperature, scratch.data_ptr(), stream)


def backward(
    dy: Tensor, qkv: Tensor, temperature: Tensor, q_norm: Tensor, k_norm: Tensor, cosines: Tensor
) -> tuple[Tensor, Tensor]:
    kernel = core().channel_attention_backward_cuda
    scratch = _scratch(qkv, temperature)
    where = scratch.data_ptr(), stream_of(qkv)
    return compiled.backward(kernel, dy, qkv, temperature, q_norm, k_norm, cosines, *where)


def _scratch(qkv: Tensor, temperature: Tensor) -> Tensor:
    """Held by the caller until the launches are made: the allocator keeps it for work on this stream."""
    batch, channels, height, width = qkv.shape
    heads = temperature.shape[0]
    elements = 0
    if qkv.numel():
        elements = core().channel_attention_scratch(batch, heads, channels // 3 // heads, height * width)
    return torch.empty(elements, dtype=wide(qkv.dtype), device=qkv.device)
