"""layer_norm2d against the ways it is usually written. Run: make bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness
from cpl_kernels.layer_norm2d import reference

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
EPS = 1e-5
SHAPES = [(8, 48, 128, 128), (2, 96, 256, 256)]


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


IMPLEMENTATIONS: dict[str, Callable[[], Function]] = {
    "ours (native)": lambda: lambda x, w, b: cpl_kernels.layer_norm2d(x, w, b, EPS, backend="native"),
    "reference eager": lambda: definition,
    "torch.compile of the reference": lambda: torch.compile(definition),
    "usual chain": lambda: chain,
    "F.layer_norm, permuted": lambda: permuted,
}


@pytest.mark.parametrize("passes", harness.PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=harness.shape_id)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_layer_norm2d(
    benchmark: Any, copy_bandwidth: Callable[[int], float], name: str, shape: tuple[int, ...], passes: str
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight, bias = (torch.randn(shape[1], requires_grad=True) for _ in range(2))
    leaves, dy = (x, weight, bias), torch.randn(shape)
    runs = harness.passes_of(IMPLEMENTATIONS[name](), leaves, dy)
    # dweight and dbias sum 131072 terms
    harness.assert_same(runs, harness.passes_of(definition, leaves, dy), atol=1e-4, sum_atol=2e-2)
    harness.row(
        benchmark, copy_bandwidth, op="layer_norm2d", shape=shape, passes=passes, name=name, run=runs[passes],
        floor_bytes=x.nbytes * (2 if passes == "forward" else 5),  # read, write; backward reads two, writes one
        working_set=2 * x.nbytes,
    )  # fmt: skip
