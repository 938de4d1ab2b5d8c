"""layer_norm2d against the ways it is usually written. Run: make bench-layer_norm2d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.layer_norm2d import reference

EPS = 1e-5


def ours(backend: str) -> harness.Function:
    return lambda x, w, b: cpl_kernels.layer_norm2d(x, w, b, EPS, backend=backend)


def chain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The usual LayerNorm2d of restoration networks: mean, var, sub, div, mul, add on NCHW."""
    mean = x.mean(1, keepdim=True)
    variance = x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + EPS) * weight[:, None, None] + bias[:, None, None]


def permuted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.layer_norm on an NHWC copy, and back."""
    y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
    return y.permute(0, 3, 1, 2).contiguous()


def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.layer_norm2d(x, weight, bias, EPS, True)


def problem(*shape: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        weight, bias = (
            torch.randn(shape[1], device=device, dtype=dtype, requires_grad=True) for _ in range(2)
        )
        return [x, weight, bias], torch.randn(shape, device=device, dtype=dtype)

    elements = torch.Size(shape).numel()
    # Read, write; the backward reads x and dy and writes dx.
    return harness.Problem(
        shape, make, {"forward": 2 * elements, "forward+backward": 5 * elements}, 2 * elements
    )


BENCH = harness.Bench(
    op="layer_norm2d",
    problems={
        "cpu": (problem(8, 48, 128, 128), problem(2, 96, 256, 256)),
        "cuda": (problem(8, 48, 128, 128), problem(8, 96, 256, 256), problem(8, 384, 16, 16)),
    },
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "torch.compile of the reference": harness.compiled(definition),
        "usual chain": lambda: chain,
        "F.layer_norm, permuted": lambda: permuted,
    },
    definition=definition,
    tolerance=1e-4,
    sum_tolerance=2e-2,  # dweight and dbias sum up to 524288 terms
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_layer_norm2d(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
