"""info_nce in one direction, B = M: against what users write in torch. Run: make bench-info_nce.

The vectors have unit length and the temperature is 0.07, which is part of what is timed everywhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows

TEMPERATURE = 0.07


def targets(query: Tensor) -> Tensor:
    return torch.arange(len(query), device=query.device)


def naive(query: Tensor, key: Tensor) -> Tensor:
    return F.cross_entropy(query @ key.T / TEMPERATURE, targets(query))


def linear_cross_entropy(query: Tensor, key: Tensor) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise harness.Unavailable("this torch has no F.linear_cross_entropy")
    return F.linear_cross_entropy(query / TEMPERATURE, key, targets(query))


def ours(backend: str) -> harness.Function:
    return lambda query, key: cpl_kernels.info_nce(query, key, temperature=TEMPERATURE, backend=backend)


def problem(batch: int, features: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        leaves = [F.normalize(torch.randn(batch, features, device=device)).to(dtype) for _ in range(2)]
        return [x.requires_grad_() for x in leaves], torch.ones((), device=device)

    elements, product = 2 * batch * features, 2 * batch * batch * features
    return harness.Problem(
        (batch, batch, features),
        make,
        {"forward": elements, "forward+backward": 2 * elements},
        2 * elements,
        flops={"forward": product, "forward+backward": 3 * product},
    )


SIZES = tuple(problem(batch, features) for features in (128, 512) for batch in (1024, 4096, 8192))
BENCH = harness.Bench(
    op="info_nce",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        "ours (native)": harness.on_device("cpu", lambda: ours("native")),
        "F.cross_entropy": lambda: naive,
        "torch.compile of F.cross_entropy": harness.compiled(naive),
        "F.linear_cross_entropy": lambda: linear_cross_entropy,
    },
    definition=naive,
    tolerance=1e-4,
    sum_tolerance=1e-4,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_info_nce(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
