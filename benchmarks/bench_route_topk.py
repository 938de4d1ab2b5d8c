"""route_topk against torch's chain of softmax and topk. Run: make bench-route_topk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.route_topk import reference


def ours(backend: str) -> harness.Function:
    return lambda logits, k: cpl_kernels.route_topk(logits, k, backend=backend)[0]


def chain(logits: Tensor, k: int) -> Tensor:
    return torch.softmax(logits, dim=1).topk(k, dim=1).values


def definition(logits: Tensor, k: int) -> Tensor:
    return reference.route_topk(logits, k, False)[0]


def problem(batch: int, prompts: int, k: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        logits = torch.randn(batch, prompts, device=device, dtype=dtype, requires_grad=True)
        return [logits], torch.randn(batch, k, device=device, dtype=dtype)

    forward = batch * (prompts + 3 * k)  # read the logits, write weights and indices (8 bytes)
    return harness.Problem(
        (batch, prompts, k),
        make,
        {"forward": forward, "forward+backward": 2 * forward + batch * prompts},
        forward,
        fixed=lambda device: (k,),
    )


# The model's, more prompts, and a batch in which the arithmetic shows beside the call.
PROBLEMS = (problem(8, 5, 1), problem(32, 64, 4), problem(1024, 64, 8))

BENCH = harness.Bench(
    op="route_topk",
    problems={"cpu": PROBLEMS, "cuda": PROBLEMS},
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "torch.compile of the reference": harness.compiled(definition),
        "softmax and topk": lambda: chain,
    },
    definition=definition,
    tolerance=1e-6,
    sum_tolerance=1e-6,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_route_topk(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
