"""What the matrix needs to know of pointwise_conv."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.spec import CAST, Bad, Case, Inputs, OpSpec, randn, sums_of_magnitudes


def naive(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """A product with every image."""
    y = torch.matmul(weight[:, :, 0, 0], x.flatten(2)).unflatten(2, x.shape[2:])
    y = y if bias is None else y + bias[:, None, None]
    return y if residual is None else y + residual


def case(
    name: str,
    why: str,
    shape: Sequence[int],
    out: int,
    bias: bool = False,
    residual: bool = False,
    scale: float = 1,
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        made = {"x": scale * randn(rng, *shape), "weight": randn(rng, out, shape[1], 1, 1)}
        if bias:
            made["bias"] = randn(rng, out)
        if residual:
            made["residual"] = randn(rng, shape[0], out, *shape[2:])
        return made

    return Case(name, why, make, cpl_kernels.pointwise_conv, naive, sums_of_magnitudes(naive))


def _random(shape: tuple[int, int, int, int], out: int, bias: bool, residual: bool) -> Case:
    return case("random", "any shape and option", shape, out, bias, residual)


X, W = torch.zeros(2, 4, 3, 3), torch.ones(5, 4, 1, 1)
call = cpl_kernels.pointwise_conv

SPEC = OpSpec(
    name="pointwise_conv",
    cases=(
        case("model", "its first level, cut down: whole panels, and rows left over", (1, 48, 8, 16), 254),
        case(
            "narrower",
            "out of the feed-forward network, with what it is added to",
            (1, 127, 8, 16),
            48,
            residual=True,
        ),
        case("bias", "odd sizes: every tail there is", (2, 13, 5, 7), 17, bias=True, residual=True),
        case("several panels", "of channels and of pixels, none of them whole", (1, 131, 9, 23), 19),
        case("several tiles", "more pixels than are packed at a time", (1, 90, 37, 41), 7),
        case(
            "several runs",
            "more pixels than are summed one after another, and an image behind them",
            (2, 5, 21, 31),
            9,
        ),
        case("one pixel", "a product of a matrix and a vector", (3, 6, 1, 1), 7),
        case("one channel", "an outer product", (2, 1, 3, 5), 8),
        case("one output", "an inner product", (2, 8, 3, 5), 1, bias=True),
        case("no images", "sums over nothing", (0, 3, 4, 4), 5, bias=True, residual=True),
        case("no pixels", "sums over nothing", (2, 3, 0, 4), 5, bias=True),
        case("zeros", "nothing but the bias", (1, 3, 4, 4), 5, bias=True, scale=0.0),
        case("large", "far from 1", (1, 9, 4, 4), 5, scale=1e4),
        case("tiny", "far from 1", (1, 9, 4, 4), 5, residual=True, scale=1e-4),
    ),
    small=(
        case("small", "no two dimensions of equal size", (2, 4, 3, 5), 6, bias=True),
        case("small, all", "one row", (2, 3, 1, 4), 5, bias=True, residual=True),
        case("small, none", "fewer outputs", (1, 5, 2, 3), 4),
    ),
    large=case("large", "tiles and parts for three threads", (3, 60, 48, 50), 70, bias=True, residual=True),
    random=st.builds(
        _random,
        st.tuples(st.integers(0, 3), st.integers(1, 80), st.integers(0, 20), st.integers(0, 40)),
        st.integers(1, 80),
        st.booleans(),
        st.booleans(),
    ),
    differentiable=("x", "weight", "bias", "residual"),
    autocast={"x": CAST, "weight": CAST},
    images=True,
    float64=("reference", "native"),
    bad={
        "rank": Bad(lambda: call(X[0], W), ValueError, r"\[B, C, H, W\].*\(4, 3, 3\)"),
        "no channels": Bad(lambda: call(X[:, :0], W[:, :0]), ValueError, r"at least one.*\(2, 0, 3, 3\)"),
        "no outputs": Bad(lambda: call(X, W[:0]), ValueError, r"at least one output.*\(0, 4, 1, 1\)"),
        "dtype": Bad(lambda: call(X.int(), W), TypeError, "x must be.*int32"),
        "weight": Bad(lambda: call(X, W[:, :2]), ValueError, r"\(5, 4, 1, 1\).*\(5, 2, 1, 1\)"),
        "weight rank": Bad(lambda: call(X, W[..., 0]), ValueError, r"\[O, C, 1, 1\].*\(5, 4, 1\)"),
        "kernel": Bad(lambda: call(X, torch.ones(5, 4, 3, 3)), ValueError, r"\(5, 4, 1, 1\).*\(5, 4, 3, 3\)"),
        "weight dtype": Bad(lambda: call(X, W.long()), TypeError, "weight.*int64"),
        "bias": Bad(lambda: call(X, W, torch.ones(4)), ValueError, r"bias.*\(5,\).*\(4,\)"),
        "bias dtype": Bad(lambda: call(X, W, torch.ones(5).int()), TypeError, "bias.*int32"),
        "residual": Bad(lambda: call(X, W, None, X), ValueError, r"residual.*\(2, 5, 3, 3\).*\(2, 4, 3, 3\)"),
        "residual dtype": Bad(
            lambda: call(X, W, None, torch.ones(2, 5, 3, 3).int()), TypeError, "residual.*int32"
        ),
        "device": Bad(lambda: call(X, W.to("meta")), ValueError, "weight is on meta"),
        "backend": Bad(lambda: call(X, W, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)
