"""What the benchmarks of info_nce share: unit vectors, their sizes, and the forms that others write.

The vectors have unit length, and dividing by the temperature is part of what is timed everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness

TEMPERATURE = 0.07


def diagonal(query: Tensor) -> Tensor:
    return torch.arange(len(query), device=query.device)


def ours(**options: Any) -> dict[str, Any]:
    """The rows of ours on every backend: info_nce(query, key, **options)."""
    return harness.ours(
        lambda backend: (
            lambda query, key: cpl_kernels.info_nce(
                query, key, temperature=TEMPERATURE, backend=backend, **options
            )
        )
    )


def linear_cross_entropy(query: Tensor, key: Tensor) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise harness.Unavailable("this torch has no F.linear_cross_entropy")
    return F.linear_cross_entropy(query / TEMPERATURE, key, diagonal(query))


class Products(torch.autograd.Function):
    """The products of all pairs, and of what they would be with keys and with queries."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        pairs = query @ key.T
        ctx.save_for_backward(pairs, query, key)
        return pairs[0, 0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        pairs, query, key = ctx.saved_tensors
        return pairs @ key, pairs.T @ query


class OwnProducts(torch.autograd.Function):
    """The same where all vectors are compared with all: half the pairs, and both ways into the gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat((a, b))
        pairs = a @ both.T
        ctx.save_for_backward(pairs, both)
        return pairs[0, 0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        pairs, both = ctx.saved_tensors
        return pairs @ both, pairs @ both


def problem(
    shape: tuple[int, ...],
    rows: int,
    features: int,
    products: tuple[int, int],
    alone: type[torch.autograd.Function] = Products,
) -> harness.Problem:
    """Two leaves of ``rows`` unit vectors each.

    Args:
        shape: names it.
        products: the operations of the forward and of both passes, in units of rows * rows * features.
        alone: the products of either pass, none of them made twice, of which torch holds the whole matrix.
    """

    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        leaves = [F.normalize(torch.randn(rows, features, device=device)).to(dtype) for _ in range(2)]
        return [x.requires_grad_() for x in leaves], torch.ones((), device=device)

    elements, one = 2 * rows * features, rows * rows * features
    return harness.Problem(
        shape,
        make,
        {"forward": elements, "forward+backward": 2 * elements},
        2 * elements,
        flops={"forward": products[0] * one, "forward+backward": products[1] * one},
        yardsticks={harness.PRODUCTS: alone.apply},
    )
