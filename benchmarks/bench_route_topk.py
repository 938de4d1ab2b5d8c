"""route_topk against torch's chain of softmax, topk (and division). Run: make bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cpl_kernels
from benchmarks import harness
from cpl_kernels.route_topk import reference

Function = Callable[[Tensor], Tensor]
# (B, N, k): the model's, more prompts, and a batch in which the arithmetic shows.
CASES = [(8, 5, 1), (32, 64, 4), (1024, 64, 8)]


def chain(k: int) -> Function:
    return lambda logits: torch.softmax(logits, dim=1).topk(k, dim=1).values


def definition(k: int) -> Function:
    return lambda logits: reference.route_topk(logits, k, False)[0]


IMPLEMENTATIONS: dict[str, Callable[[int], Function]] = {
    "ours (native)": lambda k: lambda logits: cpl_kernels.route_topk(logits, k, backend="native")[0],
    "reference eager": definition,
    "torch.compile of the reference": lambda k: torch.compile(definition(k)),
    "softmax and topk": chain,
}


@pytest.mark.parametrize("passes", harness.PASSES)
@pytest.mark.parametrize("case", CASES, ids=harness.shape_id)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_route_topk(
    benchmark: Any, copy_bandwidth: Callable[[int], float], name: str, case: tuple[int, int, int], passes: str
) -> None:
    torch.manual_seed(0)
    batch, prompts, k = case
    logits = torch.randn(batch, prompts, requires_grad=True)
    dy = torch.randn(batch, k)
    runs = harness.passes_of(IMPLEMENTATIONS[name](k), (logits,), dy)
    harness.assert_same(runs, harness.passes_of(definition(k), (logits,), dy), atol=1e-6, sum_atol=1e-6)
    kept = logits.nbytes + batch * k * (
        logits.element_size() + 8
    )  # read the logits, write weights and indices
    harness.row(
        benchmark, copy_bandwidth, op="route_topk", shape=case, passes=passes, name=name, run=runs[passes],
        floor_bytes=kept if passes == "forward" else 2 * kept + logits.nbytes, working_set=2 * kept,
    )  # fmt: skip
