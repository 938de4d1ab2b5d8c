"""How a benchmark row is taken; the same for every op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDS, WARMUP = 15, 3
PASSES = ("forward", "forward+backward")


def shape_id(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def passes_of(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], dy: Tensor
) -> dict[str, Callable[[], Any]]:
    """What is timed: the forward without a graph, and the forward with the gradient of every leaf."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*leaves)

    return {
        "forward": forward,
        "forward+backward": lambda: torch.autograd.grad(function(*leaves), leaves, dy),
    }


def assert_same(
    runs: dict[str, Callable[[], Any]], gold: dict[str, Callable[[], Any]], atol: float, sum_atol: float
) -> None:
    """Parity before any timing: the output and the first gradient to ``atol``, sums over all pixels to ``sum_atol``."""
    torch.testing.assert_close(runs["forward"](), gold["forward"](), rtol=1e-4, atol=atol)
    for i, (got, want) in enumerate(zip(runs["forward+backward"](), gold["forward+backward"](), strict=True)):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=atol if i == 0 else sum_atol)


def row(
    benchmark: Any,
    copy_bandwidth: Callable[[int], float],
    *,
    op: str,
    shape: Sequence[int],
    passes: str,
    name: str,
    run: Callable[[], Any],
    floor_bytes: int,
    working_set: int,
) -> None:
    """Time ``run``; keep the bytes that it must move, the rate, and its share of a copy of ``working_set`` bytes."""
    benchmark.group = f"{op} {shape_id(shape)} float32 {passes}"
    benchmark.name = name
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=WARMUP)
    rate = floor_bytes / benchmark.stats.stats.median / 1e9
    benchmark.extra_info.update(
        floor_bytes=floor_bytes, gb_per_s=rate, share_of_copy_bandwidth=rate / copy_bandwidth(working_set)
    )
