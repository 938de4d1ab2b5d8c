"""channel_attention against its steps one by one: normalise, product, softmax, product.

Run: make bench-channel_attention. A size reads B x C x H x W x heads; qkv has 3C channels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.channel_attention import reference


def ours(backend: str) -> harness.Function:
    return lambda qkv, temperature: cpl_kernels.channel_attention(qkv, temperature, backend=backend)


def definition(qkv: Tensor, temperature: Tensor) -> Tensor:
    return reference.channel_attention(qkv, temperature)


def steps(qkv: Tensor, temperature: Tensor) -> Tensor:
    """As restoration networks write it: F.normalize on q and k, two matmuls and a softmax between them."""
    batch, channels, height, width = qkv.shape
    heads, channels = temperature.shape[0], channels // 3
    q, k, v = (x.reshape(batch, heads, channels // heads, -1) for x in qkv.chunk(3, dim=1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return (attention @ v).reshape(batch, channels, height, width)


def problem(batch: int, channels: int, side: int, heads: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        qkv = torch.randn(batch, 3 * channels, side, side, device=device, dtype=dtype, requires_grad=True)
        temperature = torch.ones(heads, 1, 1, device=device, dtype=dtype, requires_grad=True)
        return [qkv, temperature], torch.randn(batch, channels, side, side, device=device, dtype=dtype)

    image = batch * channels * side * side
    product = 2 * image * channels // heads  # flops: every pixel of every channel meets its head's channels
    return harness.Problem(
        (batch, channels, side, side, heads),
        make,
        # Read 3C, write C; the backward reads 3C and C (dy) and writes 3C.
        {"forward": 4 * image, "forward+backward": 11 * image},
        4 * image,
        {"forward": 2 * product, "forward+backward": 6 * product},
    )


# The levels of the full model, the last being its decoder's first (96 channels in one head).
LEVELS = ((48, 128, 1), (96, 64, 2), (192, 32, 4), (384, 16, 8), (96, 128, 1))

BENCH = harness.Bench(
    op="channel_attention",
    problems={
        "cpu": (*(problem(1, *level) for level in LEVELS), problem(2, 48, 128, 1)),
        "cuda": tuple(problem(8, *level) for level in LEVELS),
    },
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "normalize, matmul, softmax": lambda: steps,
        "torch.compile of them": harness.compiled(steps),
    },
    definition=definition,
    tolerance=1e-4,
    sum_tolerance=2e-3,  # dtemperature sums C^2 / heads products
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_channel_attention(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
