"""What the matrix needs to know of gated_dwconv."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from tests.kernels.spec import CAST, Bad, Case, Inputs, OpSpec, randn


def naive(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu") -> Tensor:
    """Nine shifted products and the error function."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    h = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            h = h + padded[:, :, i : i + height, j : j + width] * weight[:, 0, i, j, None, None]
    if bias is not None:
        h = h + bias[:, None, None]
    a, gate = h[:, : x.shape[1] // 2], h[:, x.shape[1] // 2 :]
    if activation == "gelu":
        a = a * 0.5 * (1 + torch.erf(a / math.sqrt(2)))
    return a * gate


def case(
    name: str,
    why: str,
    shape: Sequence[int],
    activation: str = "gelu",
    with_bias: bool = True,
    scale: float = 1,
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        made = {"x": scale * randn(rng, *shape), "weight": randn(rng, shape[1], 1, 3, 3)}
        return made | {"bias": randn(rng, shape[1])} if with_bias else made

    call = partial(cpl_kernels.gated_dwconv, activation=activation)
    # Nine products of up to three deviations each beside a largest result of about as much again.
    return Case(name, why, make, call, partial(naive, activation=activation), terms=8, floor=scale**2)


def _random(shape: tuple[int, int, int, int], activation: str, with_bias: bool) -> Case:
    shape = (shape[0], 2 * shape[1], *shape[2:])
    return case("random", "any shape and option", shape, activation, with_bias)


X, W = torch.zeros(2, 4, 3, 3), torch.ones(4, 1, 3, 3)
call = cpl_kernels.gated_dwconv

SPEC = OpSpec(
    name="gated_dwconv",
    cases=(
        case("model", "its first level, cut down; no bias", (1, 2 * 127, 4, 6), with_bias=False),
        case("bias", "odd sizes", (2, 6, 5, 7)),
        case("simple gate", "NAFNet's", (2, 6, 5, 7), "none"),
        case("simple gate, no bias", "both options off", (2, 4, 3, 3), "none", False),
        case("beyond", "more than a tile in both directions", (1, 4, 17, 65)),
        case("pixel", "only the centre of the filter counts", (3, 4, 1, 1)),
        case("row", "no neighbours above and below", (2, 4, 1, 9)),
        case("column", "no neighbours left and right", (2, 4, 9, 1)),
        case("no images", "sums over nothing", (0, 4, 3, 3)),
        case("no pixels", "sums over nothing", (2, 4, 0, 3)),
        case("zeros", "gelu at 0, slope 1/2", (1, 4, 3, 3), with_bias=False, scale=0.0),
        case("tails", "most gates are shut or open: |a| in the tens", (1, 4, 5, 5), scale=10.0),
    ),
    small=(
        case("small", "no two dimensions of equal size", (2, 4, 3, 5)),
        case("small, none", "the other formula, no bias, one row", (2, 4, 1, 3), "none", False),
    ),
    large=case(
        "large", "planes for each of three threads, of more rows than Triton's strip of 32", (3, 4, 34, 35)
    ),
    random=st.builds(
        _random,
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 20), st.integers(0, 70)),
        st.sampled_from(["gelu", "none"]),
        st.booleans(),
    ),
    differentiable=("x", "weight", "bias"),
    autocast={"x": CAST},
    images=True,
    bad={
        "rank": Bad(lambda: call(X[0], W), ValueError, r"\[B, 2C, H, W\].*\(4, 3, 3\)"),
        "odd": Bad(lambda: call(X[:, :3], W[:3]), ValueError, r"even number.*\(2, 3, 3, 3\)"),
        "no channels": Bad(lambda: call(X[:, :0], W[:0]), ValueError, r"even number.*\(2, 0, 3, 3\)"),
        "dtype": Bad(lambda: call(X.int(), W), TypeError, "x must be.*int32"),
        "weight": Bad(lambda: call(X, W[:2]), ValueError, r"\(4, 1, 3, 3\).*\(2, 1, 3, 3\)"),
        "kernel 5": Bad(lambda: call(X, torch.ones(4, 1, 5, 5)), ValueError, r"\(4, 1, 5, 5\)"),
        "weight dtype": Bad(lambda: call(X, W.long()), TypeError, "weight.*int64"),
        "bias": Bad(lambda: call(X, W, torch.ones(2)), ValueError, r"bias.*\(4,\).*\(2,\)"),
        "bias dtype": Bad(lambda: call(X, W, torch.ones(4).int()), TypeError, "bias.*int32"),
        "activation": Bad(lambda: call(X, W, None, "relu"), ValueError, "'gelu', 'none', got 'relu'"),
        "device": Bad(lambda: call(X, W.to("meta")), ValueError, "weight is on meta"),
        "backend": Bad(lambda: call(X, W, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)
