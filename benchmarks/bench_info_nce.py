"""info_nce in one direction, B = M: against what users write in torch. Run: make bench-info_nce."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from benchmarks import contrastive, harness, rows


def naive(query: Tensor, key: Tensor) -> Tensor:
    return F.cross_entropy(query @ key.T / contrastive.TEMPERATURE, contrastive.diagonal(query))


# The gradient comes with the forward: three products of 2 B^2 D operations.
SIZES = tuple(
    contrastive.problem((batch, batch, features), batch, features, (2, 6))
    for features in (128, 512)
    for batch in (1024, 4096, 8192)
)
BENCH = harness.Bench(
    op="info_nce",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        **contrastive.ours(),
        "F.cross_entropy": lambda: naive,
        "torch.compile of F.cross_entropy": harness.compiled(naive),
        "F.linear_cross_entropy": lambda: contrastive.linear_cross_entropy,
    },
    definition=naive,
    tolerance=1e-4,
    sum_tolerance=1e-4,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_info_nce(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
