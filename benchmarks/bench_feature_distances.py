"""feature_distances against torch's chains, K = 4, at the layers of VGG16 for two images of 256x256.

Run: make bench-feature_distances.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.feature_distances import reference

NEGATIVES = 4
Pair = Callable[[Tensor, Tensor], Tensor]


@functools.lru_cache(maxsize=1)
def negatives(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """They have no gradient in training, so they are no leaf of the harness but belong to their anchor's size."""
    rng = torch.Generator(device).manual_seed(1)
    return torch.randn(NEGATIVES, *shape, dtype=dtype, device=device, generator=rng)


def against_negatives(function: Pair) -> harness.Function:
    return lambda anchor: function(anchor, negatives(anchor.shape, anchor.dtype, anchor.device))


def ours(backend: str) -> harness.Function:
    return against_negatives(lambda a, o: cpl_kernels.feature_distances(a, o, backend=backend))


def chain(anchor: Tensor, others: Tensor) -> Tensor:
    return (anchor - others).abs().flatten(2).mean(2)


def l1_losses(anchor: Tensor, others: Tensor) -> Tensor:
    """F.l1_loss for one negative after the other; the mean over an image is ours, its own is over the batch."""
    return torch.stack([F.l1_loss(anchor, o, reduction="none").flatten(1).mean(1) for o in others.unbind()])


def problem(*shape: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        anchor = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        negatives(anchor.shape, dtype, anchor.device)  # memory is measured from here on
        return [anchor], torch.randn(NEGATIVES, shape[0], device=device)

    elements = torch.Size(shape).numel()
    # All are read; the backward reads all again and writes the anchor's gradient.
    floor = {"forward": (NEGATIVES + 1) * elements, "forward+backward": (2 * NEGATIVES + 3) * elements}
    return harness.Problem(shape, make, floor, (NEGATIVES + 2) * elements)


SIZES = (problem(2, 64, 256, 256), problem(2, 128, 128, 128), problem(2, 256, 64, 64))
BENCH = harness.Bench(
    op="feature_distances",
    problems={"cpu": SIZES, "cuda": SIZES},
    implementations={
        **harness.ours(ours),
        "torch chain": lambda: against_negatives(chain),
        "torch.compile of the chain": lambda: against_negatives(harness.compiled(chain)()),
        "F.l1_loss, a loop": lambda: against_negatives(l1_losses),
    },
    definition=against_negatives(lambda a, o: reference.feature_distances(a, o, 1, False)),
    tolerance=1e-4,
    sum_tolerance=1e-4,  # no gradient sums over pixels
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_feature_distances(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
