"""pointwise_conv against torch's convolution and products. Run: make bench-pointwise_conv."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows


def ours(backend: str) -> harness.Function:
    return lambda x, weight: cpl_kernels.pointwise_conv(x, weight, backend=backend)


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight)


def batched(x: Tensor, weight: Tensor) -> Tensor:
    """MKL's product on a CPU, cuBLAS's on a GPU, on images as they are."""
    product = torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2))
    return product.view(len(x), -1, *x.shape[2:])


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """The obvious product, which folds the batch into the rows."""
    return torch.matmul(weight.flatten(1), x.flatten(2)).view(len(x), -1, *x.shape[2:])


def problem(batch: int, channels: int, out: int, side: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        x = torch.randn(batch, channels, side, side, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(out, channels, 1, 1, device=device, dtype=dtype, requires_grad=True)
        return [x, weight], torch.randn(batch, out, side, side, device=device, dtype=dtype)

    read, written, weights = channels * side**2 * batch, out * side**2 * batch, channels * out
    # The backward pass reads x, dy and the weight and writes the gradients of x and weight.
    floor = {
        "forward": read + weights + written,
        "forward+backward": 3 * read + 2 * written + 3 * weights,
    }
    products = 2 * batch * channels * out * side**2
    flops = {"forward": products, "forward+backward": 3 * products}
    return harness.Problem((batch, channels, out, side, side), make, floor, read + written, flops)


# On a GPU, where ours is one of the two: widths of the full model's first and third level, eight crops of 128 pixels.
CUDA_SIZES = (
    (8, 48, 144, 128),
    (8, 48, 254, 128),
    (8, 127, 48, 128),
    (8, 96, 510, 128),
    (8, 192, 576, 32),
    (8, 510, 192, 32),
)

# Into and out of the feed-forward network, level by level of the full model at 128 pixels; the widest of cplir-tiny as
# the demonstration has it.
SIZES = (
    (1, 48, 254, 128),
    (1, 127, 48, 128),
    (1, 96, 510, 128),
    (1, 96, 510, 64),
    (1, 192, 1020, 32),
    (1, 384, 2042, 16),
    (4, 32, 170, 48),
    (4, 85, 32, 48),
    (4, 32, 96, 48),
)

BENCH = harness.Bench(
    op="pointwise_conv",
    problems={
        "cpu": tuple(problem(*size) for size in SIZES),
        "cuda": tuple(problem(*size) for size in CUDA_SIZES),
    },
    implementations={
        **harness.ours(ours),
        "conv2d": lambda: convolution,
        "batched product": lambda: batched,
        "matmul": lambda: matmul,
        "torch.compile of conv2d": harness.compiled(convolution),
    },
    definition=convolution,
    tolerance=1e-3,  # sums of up to 1020 products of numbers near 1, |y| up to 150
    sum_tolerance=1e-2,  # sums of up to 16384
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_pointwise_conv(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
