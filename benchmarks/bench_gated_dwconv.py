"""gated_dwconv against convolution, GELU and product as separate steps. Run: make bench-gated_dwconv."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.gated_dwconv import reference


def ours(backend: str) -> harness.Function:
    return lambda x, w: cpl_kernels.gated_dwconv(x, w, backend=backend)


def definition(x: Tensor, weight: Tensor) -> Tensor:
    return reference.gated_dwconv(x, weight, None, gelu=True)


def steps(x: Tensor, weight: Tensor) -> Tensor:
    """As restoration networks write it: conv2d, chunk, gelu, mul."""
    a, gate = F.conv2d(x, weight, padding=1, groups=x.shape[1]).chunk(2, dim=1)
    return F.gelu(a) * gate


def problem(*shape: int) -> harness.Problem:
    batch, channels, height, width = shape

    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        weight = torch.randn(channels, 1, 3, 3, device=device, dtype=dtype, requires_grad=True)
        return [x, weight], torch.randn(batch, channels // 2, height, width, device=device, dtype=dtype)

    half = torch.Size(shape).numel() // 2
    # Read 2C, write C; the backward reads 2C and C (dy) and writes 2C.
    return harness.Problem(shape, make, {"forward": 3 * half, "forward+backward": 8 * half}, 3 * half)


# Twice the hidden width of the feed-forward at C = 48, 96, 192: the first three levels of the full model.
LEVELS = ((254, 128, 128), (510, 64, 64), (1020, 32, 32))

BENCH = harness.Bench(
    op="gated_dwconv",
    problems={
        "cpu": tuple(problem(1, *level) for level in LEVELS),
        "cuda": tuple(problem(8, *level) for level in LEVELS),
    },
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "conv2d, gelu, mul": lambda: steps,
        "torch.compile of them": harness.compiled(steps),
    },
    definition=definition,
    tolerance=2e-4,
    sum_tolerance=2e-2,  # dweight sums 16384 terms
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_gated_dwconv(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
