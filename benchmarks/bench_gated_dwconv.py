"""gated_dwconv against convolution, GELU and product as separate steps. Run: make bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness
from cpl_kernels.gated_dwconv import reference

Function = Callable[[Tensor, Tensor], Tensor]
# Twice the hidden width of the feed-forward at C = 48, 96, 192: the first three levels of the full model.
SHAPES = [(1, 254, 128, 128), (1, 510, 64, 64), (1, 1020, 32, 32)]


def steps(x: Tensor, weight: Tensor) -> Tensor:
    """As restoration networks write it: conv2d, chunk, gelu, mul."""
    a, gate = F.conv2d(x, weight, padding=1, groups=x.shape[1]).chunk(2, dim=1)
    return F.gelu(a) * gate


IMPLEMENTATIONS: dict[str, Callable[[], Function]] = {
    "ours (native)": lambda: lambda x, w: cpl_kernels.gated_dwconv(x, w, backend="native"),
    "reference": lambda: lambda x, w: cpl_kernels.gated_dwconv(x, w, backend="reference"),
    "eager": lambda: steps,
    "torch.compile": lambda: torch.compile(steps),
}


@pytest.mark.parametrize("passes", harness.PASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=harness.shape_id)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gated_dwconv(
    benchmark: Any, copy_bandwidth: Callable[[int], float], name: str, shape: tuple[int, ...], passes: str
) -> None:
    torch.manual_seed(0)
    batch, channels, height, width = shape
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(channels, 1, 3, 3, requires_grad=True)
    leaves, dy = (x, weight), torch.randn(batch, channels // 2, height, width)
    runs = harness.passes_of(IMPLEMENTATIONS[name](), leaves, dy)
    gold = harness.passes_of(lambda x, w: reference.gated_dwconv(x, w, None, gelu=True), leaves, dy)
    harness.assert_same(runs, gold, atol=2e-4, sum_atol=2e-2)  # dweight sums 16384 terms
    harness.row(
        benchmark, copy_bandwidth, op="gated_dwconv", shape=shape, passes=passes, name=name, run=runs[passes],
        # Read 2C, write C; the backward reads 2C and C (dy) and writes 2C.
        floor_bytes=x.nbytes * 3 // 2 if passes == "forward" else x.nbytes * 8 // 2,
        working_set=x.nbytes * 3 // 2,
    )  # fmt: skip
