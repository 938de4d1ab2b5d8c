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
    """Shifted products, one for each tap."""
    (height, width), size = x.shape[2:], weight.shape[-1]
    padded = F.pad(x, [size // 2] * 4)
    y = torch.zeros_like(x)
    for i in range(size):
        for j in range(size):
            y = y + padded[:, :, i : i + height, j : j + width] * weight[:, 0, i, j, None, None]
    return y if bias is None else y + bias[:, None, None]


def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Four times for the weight: oneDNN, which computes the definition's gradient, adds its terms up one after another
    (hypothesis found 9 eps of 143 equal ones)."""
    found = dict(sums_of_magnitudes(naive)(inputs, gradients))
    return {**found, "gradient of weight": 4 * found["gradient of weight"]}


def case(
    name: str, why: str, shape: Sequence[int], with_bias: bool = True, scale: float = 1, kernel: int = 3
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        made = {"x": scale * randn(rng, *shape), "weight": randn(rng, shape[1], 1, kernel, kernel)}
        return made | {"bias": randn(rng, shape[1])} if with_bias else made

    return Case(name, why, make, cpl_kernels.dwconv, naive, terms)


def _random(shape: tuple[int, int, int, int], with_bias: bool, kernel: int) -> Case:
    return case("random", "any shape and option", shape, with_bias, kernel=kernel)


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
        case("5x5", "odd sizes", (2, 3, 9, 11), kernel=5),
        case("7x7", "odd sizes", (2, 3, 9, 11), kernel=7),
        case("7x7, no bias", "a power of two", (1, 8, 8, 16), False, kernel=7),
        case("5x5, smaller map", "the kernel reaches over it on all sides", (2, 2, 3, 2), kernel=5),
        case("7x7, smaller map", "the kernel reaches over it on all sides", (2, 2, 2, 3), kernel=7),
        case("5x5, pixel", "only the centre of the filter counts", (3, 2, 1, 1), kernel=5),
        case("7x7, pixel", "only the centre of the filter counts", (3, 2, 1, 1), kernel=7),
        case("7x7, row", "no neighbours above and below", (2, 2, 1, 9), kernel=7),
        case("5x5, column", "no neighbours left and right", (2, 2, 9, 1), kernel=5),
        case("5x5, beyond", "more than a tile of columns on every backend", (1, 2, 3, 140), kernel=5),
        case("7x7, strips", "more rows than a strip has on every backend", (1, 2, 37, 5), kernel=7),
        case(
            "7x7, bands", "wide rows, of which a band in the first cache has less", (1, 1, 33, 150), kernel=7
        ),
        case("small maps", "more images than go together, and a register's half behind them", (11, 2, 5, 8)),
        case("7x7, small maps", "more images than go together, of odd sizes", (9, 1, 9, 5), kernel=7),
        case("5x5, no images", "sums over nothing", (0, 2, 3, 3), kernel=5),
        case("7x7, no pixels", "sums over nothing", (2, 2, 0, 3), kernel=7),
        *(
            case(
                f"width {width}", "narrower than a register, of every width", (1, 2, 5, width), kernel=kernel
            )
            for width, kernel in zip(range(1, 9), (3, 5, 7, 7, 5, 3, 7, 5), strict=True)
        ),
    ),
    small=(
        case("small", "no two dimensions of equal size", (2, 4, 3, 5)),
        case("small, no bias", "one row", (2, 3, 1, 4), False),
        case("small, 5x5", "smaller than the kernel", (2, 2, 3, 4), False, kernel=5),
        case("small, 7x7", "smaller than the kernel in one direction", (2, 3, 8, 4), kernel=7),
    ),
    large=case(
        "large", "planes for each of three threads; test_dwconv.py has 3x3 and 7x7", (3, 4, 34, 36), kernel=5
    ),
    random=st.builds(
        _random,
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 40), st.integers(0, 150)),
        st.booleans(),
        st.sampled_from((3, 5, 7)),
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
