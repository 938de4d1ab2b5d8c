"""info_nce in both directions, B = M: CLIP's loss. Run: make bench-info_nce_symmetric.

``two_products`` and ``one_product`` are the loss of CLIP's figure 3 (arXiv 2103.00020) as implementations of it
evaluate it: open_clip's ClipLoss on one process multiplies twice, CLIP's own code transposes. Both are written here
from the published formula, because open_clip itself does not import without torchvision.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from benchmarks import contrastive, harness, rows
from benchmarks.contrastive import TEMPERATURE, diagonal


def two_products(query: Tensor, key: Tensor) -> Tensor:
    towards_keys, towards_queries = query @ key.T / TEMPERATURE, key @ query.T / TEMPERATURE
    targets = diagonal(query)
    return (F.cross_entropy(towards_keys, targets) + F.cross_entropy(towards_queries, targets)) / 2


def one_product(query: Tensor, key: Tensor) -> Tensor:
    logits, targets = query @ key.T / TEMPERATURE, diagonal(query)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def two_linear(query: Tensor, key: Tensor) -> Tensor:
    return (contrastive.linear_cross_entropy(query, key) + contrastive.linear_cross_entropy(key, query)) / 2


# Three products of 2 B^2 D operations. (All log-sum-exps come before any gradient, so one that was not kept, for there
# were too many, is made twice.)
SIZES = tuple(
    contrastive.problem((batch, batch, features), batch, features, (2, 6))
    for features in (128, 512)
    for batch in (1024, 4096)
)
BENCH = harness.Bench(
    op="info_nce_symmetric",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        **contrastive.ours(symmetric=True),
        "CLIP, two products": lambda: two_products,
        "CLIP, one product": lambda: one_product,
        "torch.compile of CLIP, one product": harness.compiled(one_product),
        "two F.linear_cross_entropy": lambda: two_linear,
    },
    definition=one_product,
    tolerance=1e-4,
    sum_tolerance=1e-4,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_info_nce_symmetric(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
