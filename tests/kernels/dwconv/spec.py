"""What the matrix needs to know of dwconv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.spec import CAST, Bad, Case, Inputs, OpSpec, randn, sums_of_magnitudes


def naive(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Nine shifted products."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    y = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            y = y + padded[:, :, i : i + height, j : j + width] * weight[:, 0, i, j, None, None]
    return y if bias is None else y + bias[:, None, None]


def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Four times for the weight: oneDNN, which computes the definition's gradient, adds its terms up one after another
    (hypothesis found 9 eps of 143 equal ones)."""
    found = dict(sums_of_magnitudes(naive)(inputs, gradients))
    return {**found, "gradient of weight": 4 * found["gradient of weight"]}


def case(name: str, why: str, shape: Sequence[int], with_bias: bool = True, scale: float = 1) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        made = {"x": scale * randn(rng, *shape), "weight": randn(rng, shape[1], 1, 3, 3)}
        return made | {"bias": randn(rng, shape[1])} if with_bias else made

    return Case(name, why, make, cpl_kernels.dwconv, naive, terms)


def _random(shape: tuple[int, int, int, int], with_bias: bool) -> Case:
    return case("random", "any shape and option", shape, with_bias)


X, W = torch.zeros(2, 4, 3, 3), torch.ones(4, 1, 3, 3)
call = cpl_kernels.dwconv

SPEC = OpSpec(
    name="dwconv",
    cases=(
        case("model", "its first level, cut down; no bias", (1, 144, 4, 8), with_bias=False),
        case("bias", "odd sizes", (2, 3, 5, 7)),
        case("strips", "more rows than a strip has, and rows that are read in fours", (1, 2, 37, 20)),
        case("beyond", "more than a tile of columns, in fours", (1, 2, 9, 140)),
        case("beyond, odd", "more than a tile of columns, one at a time", (1, 2, 9, 71)),
        case("pixel", "only the centre of the filter counts", (3, 2, 1, 1)),
        case("row", "no neighbours above and below", (2, 2, 1, 9)),
        case("column", "no neighbours left and right", (2, 2, 9, 1)),
        case("no images", "sums over nothing", (0, 2, 3, 3)),
        case("no pixels", "sums over nothing", (2, 2, 0, 3)),
        case("zeros", "nothing but the bias", (1, 2, 3, 3), scale=0.0),
    ),
    small=(
        case("small", "no two dimensions of equal size", (2, 4, 3, 5)),
        case("small, no bias", "one row", (2, 3, 1, 4), False),
    ),
    large=case("large", "planes for each of three threads", (3, 4, 34, 36)),
    random=st.builds(
        _random,
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 40), st.integers(0, 150)),
        st.booleans(),
    ),
    differentiable=("x", "weight", "bias"),
    autocast={"x": CAST},
    images=True,
    bad={
        "rank": Bad(lambda: call(X[0], W), ValueError, r"\[B, C, H, W\].*\(4, 3, 3\)"),
        "no channels": Bad(lambda: call(X[:, :0], W[:0]), ValueError, r"at least one.*\(2, 0, 3, 3\)"),
        "dtype": Bad(lambda: call(X.int(), W), TypeError, "x must be.*int32"),
        "weight": Bad(lambda: call(X, W[:2]), ValueError, r"\(4, 1, 3, 3\).*\(2, 1, 3, 3\)"),
        "weight rank": Bad(lambda: call(X, W[:, 0]), ValueError, r"\[C, 1, k, k\].*\(4, 3, 3\)"),
        "kernel 4": Bad(
            lambda: call(X, torch.ones(4, 1, 4, 4)), ValueError, r"3, 5, 7.*\(4, 1, 4, 4\).*conv2d"
        ),
        "kernel 9": Bad(
            lambda: call(X, torch.ones(4, 1, 9, 9)), ValueError, r"3, 5, 7.*\(4, 1, 9, 9\).*conv2d"
        ),
        "kernel 1": Bad(
            lambda: call(X, torch.ones(4, 1, 1, 1)), ValueError, r"3, 5, 7.*\(4, 1, 1, 1\).*conv2d"
        ),
        "kernel 3x5": Bad(
            lambda: call(X, torch.ones(4, 1, 3, 5)), ValueError, r"3, 5, 7.*\(4, 1, 3, 5\).*conv2d"
        ),
        "weight 5": Bad(
            lambda: call(X, torch.ones(2, 1, 5, 5)), ValueError, r"\(4, 1, 5, 5\).*\(2, 1, 5, 5\)"
        ),
        "weight dtype": Bad(lambda: call(X, W.long()), TypeError, "weight.*int64"),
        "bias": Bad(lambda: call(X, W, torch.ones(2)), ValueError, r"bias.*\(4,\).*\(2,\)"),
        "bias dtype": Bad(lambda: call(X, W, torch.ones(4).int()), TypeError, "bias.*int32"),
        "device": Bad(lambda: call(X, W.to("meta")), ValueError, "weight is on meta"),
        "backend": Bad(lambda: call(X, W, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)
