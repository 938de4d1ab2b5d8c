"""channel_attention in C++ for CPU tensors (csrc/channel_attention/cpu.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.channel_attention import compiled
from cpl_kernels.core import core


def why_not(qkv: Tensor, temperature: Tensor) -> str | None:
    return compiled.why_not(qkv, temperature)


def forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return compiled.forward(core().channel_attention_forward, qkv, temperature, torch.get_num_threads())


def backward(
    dy: Tensor, qkv: Tensor, temperature: Tensor, q_norm: Tensor, k_norm: Tensor, cosines: Tensor
) -> tuple[Tensor, Tensor]:
    kernel, threads = core().channel_attention_backward, torch.get_num_threads()
    return compiled.backward(kernel, dy, qkv, temperature, q_norm, k_norm, cosines, threads)
