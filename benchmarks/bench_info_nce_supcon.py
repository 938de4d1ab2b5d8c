"""SupCon's loss by info_nce: rows of 64 classes, each compared with all others. Run: make bench-info_nce_supcon.

``masks`` is equation 2 of SupCon (arXiv 2004.11362) as its implementations evaluate it: all pairs, a mask of the
positives, one of what is compared, and a mean over the positives' log-probabilities. It is written here from the
published formula; tests/losses/test_against_packages.py compares values with pytorch-metric-learning itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import cpl_kernels
from benchmarks import contrastive, harness, rows
from benchmarks.contrastive import TEMPERATURE

CLASSES = 64


def labels(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) % CLASSES


def ours(backend: str) -> harness.Function:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        z = torch.cat((a, b))
        return cpl_kernels.info_nce(
            z, query_labels=labels(len(z), z.device), temperature=TEMPERATURE, backend=backend
        )

    return loss


def masks(a: Tensor, b: Tensor) -> Tensor:
    z = torch.cat((a, b))
    label = labels(len(z), z.device)
    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (label[:, None] == label) & others
    log_probability = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    return -((log_probability * positive).sum(1) / positive.sum(1)).mean()


SIZES = tuple(
    contrastive.problem((2 * images, features), images, features, (4, 12), contrastive.OwnProducts)
    for features in (128, 512)
    for images in (1024,)
)
BENCH = harness.Bench(
    op="info_nce_supcon",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        **harness.ours(ours),
        "SupCon by masks": lambda: masks,
        "torch.compile of SupCon by masks": harness.compiled(masks),
    },
    definition=masks,
    tolerance=1e-4,
    sum_tolerance=1e-4,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_info_nce_supcon(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
