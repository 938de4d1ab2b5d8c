"""dwconv against torch's depthwise convolution. Run: make bench-dwconv."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.dwconv import reference


def ours(backend: str) -> harness.Function:
    return lambda x, w: cpl_kernels.dwconv(x, w, backend=backend)


def definition(x: Tensor, weight: Tensor) -> Tensor:
    return reference.dwconv(x, weight, None)


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1, groups=x.shape[1])


def problem(*shape: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(shape[1], 1, 3, 3, device=device, dtype=dtype, requires_grad=True)
        return [x, weight], torch.randn(shape, device=device, dtype=dtype)

    image = torch.Size(shape).numel()
    # Read and write; the backward reads x and dy and writes dx.
    return harness.Problem(shape, make, {"forward": 2 * image, "forward+backward": 5 * image}, 2 * image)


# Three times C = 48, 96, 192, 384: the full model's four levels.
LEVELS = ((144, 128, 128), (288, 64, 64), (576, 32, 32), (1152, 16, 16))

BENCH = harness.Bench(
    op="dwconv",
    problems={
        "cpu": tuple(problem(1, *level) for level in LEVELS),
        "cuda": tuple(problem(8, *level) for level in LEVELS),
    },
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "conv2d": lambda: convolution,
        "torch.compile of conv2d": harness.compiled(convolution),
    },
    definition=definition,
    tolerance=2e-4,
    sum_tolerance=2e-2,  # dweight sums 16384 terms
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_dwconv(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
