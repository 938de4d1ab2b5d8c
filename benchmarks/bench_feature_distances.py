"""feature_distances against torch's chains, at the layers of VGG16 for a batch of 256x256. Run: make
bench-feature_distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.feature_distances import reference

NEGATIVES = 4


def ours(backend: str) -> harness.Function:
    return lambda anchor, others: cpl_kernels.feature_distances(anchor, others, backend=backend)


def chain(anchor: Tensor, others: Tensor) -> Tensor:
    return (anchor - others).abs().flatten(2).mean(2)


def l1_losses(anchor: Tensor, others: Tensor) -> Tensor:
    """F.l1_loss, one negative after the other; its mean over an image is taken apart, as it has none by image."""
    losses = [F.l1_loss(anchor, other, reduction="none").flatten(1).mean(1) for other in others.unbind()]
    return torch.stack(losses)


def definition(anchor: Tensor, others: Tensor) -> Tensor:
    return reference.feature_distances(anchor, others, 1, False)


def problem(*shape: int) -> harness.Problem:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        anchor = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
        others = torch.randn(NEGATIVES, *shape, device=device, dtype=dtype)
        return [anchor, others], torch.randn(NEGATIVES, shape[0], device=device)

    elements = torch.Size(shape).numel()
    # All are read; the backward reads all again and writes the anchor's gradient.
    floor = {
        "forward": (NEGATIVES + 1) * elements,
        "forward+backward": (2 * NEGATIVES + 3) * elements,
    }
    return harness.Problem(shape, make, floor, (NEGATIVES + 2) * elements)


BENCH = harness.Bench(
    op="feature_distances",
    problems={
        device: (problem(2, 64, 256, 256), problem(2, 128, 128, 128), problem(2, 256, 64, 64))
        for device in ("cpu", "cuda")
    },
    implementations={
        "ours (native)": harness.on_device("cpu", lambda: ours("native")),
        "ours (triton)": harness.on_device("cuda", lambda: ours("triton")),
        "ours (cuda)": harness.on_device("cuda", lambda: ours("cuda")),
        "torch chain": lambda: chain,
        "torch.compile of the chain": harness.compiled(chain),
        "F.l1_loss, a loop": lambda: l1_losses,
    },
    definition=definition,
    tolerance=1e-4,
    sum_tolerance=1e-4,  # no gradient sums over pixels
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_feature_distances(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
