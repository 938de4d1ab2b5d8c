"""SimCLR's loss by info_nce: 2B views, each compared with all others. Run: make bench-info_nce_self.

``four_blocks`` is equation 1 of SimCLR (arXiv 2002.05709) as lightly's NTXentLoss evaluates it: four products of the
views, the diagonals of two taken out by a mask, and cross-entropy of the rest. ``masked`` fills the diagonal of one
product. Both are written here from the published formula, because lightly does not import without torchvision;
tests/losses/test_against_packages.py compares values with lightly itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import contrastive, harness, rows
from benchmarks.contrastive import TEMPERATURE


def partners(images: int, device: torch.device) -> Tensor:
    """For each of the 2B views the place of the other view of its image."""
    return torch.arange(2 * images, device=device).roll(images)


def ours(backend: str) -> harness.Function:
    return lambda a, b: cpl_kernels.info_nce(
        torch.cat((a, b)), targets=partners(len(a), a.device), temperature=TEMPERATURE, backend=backend
    )


def four_blocks(a: Tensor, b: Tensor) -> Tensor:
    images = len(a)
    others = ~torch.eye(images, dtype=torch.bool, device=a.device)
    same_a, same_b = ((x @ x.T / TEMPERATURE)[others].view(images, -1) for x in (a, b))  # [B, B - 1]
    a_b, b_a = a @ b.T / TEMPERATURE, b @ a.T / TEMPERATURE
    logits = torch.cat((torch.cat((a_b, same_a), 1), torch.cat((b_a, same_b), 1)))  # [2B, 2B - 1]
    return F.cross_entropy(logits, torch.arange(images, device=a.device).repeat(2))


def masked(a: Tensor, b: Tensor) -> Tensor:
    z = torch.cat((a, b))
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, partners(len(a), a.device))


def problem(images: int, features: int) -> harness.Problem:
    """Half the pairs, and both ways into the gradient: 4 and 8 of B^2 D operations."""
    return contrastive.problem((2 * images, features), images, features, (4, 12), contrastive.OwnProducts)


SIZES = tuple(problem(images, features) for features in (128, 512) for images in (1024, 2048))
BENCH = harness.Bench(
    op="info_nce_self",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        **harness.ours(ours),
        "NTXent, four blocks": lambda: four_blocks,
        "NTXent, masked": lambda: masked,
        "torch.compile of NTXent, masked": harness.compiled(masked),
    },
    definition=masked,
    tolerance=1e-4,
    sum_tolerance=1e-4,
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_info_nce_self(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
