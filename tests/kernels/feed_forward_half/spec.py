"""What the matrix needs to know of feed_forward_half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.half_ops import Ops, both
from tests.kernels.spec import Bad, Case, Inputs, OpSpec, randn

BIASES = ("in_bias", "dw_bias", "out_bias")


def half(
    ops: Ops,
    x: Tensor,
    project_in: Tensor,
    dw: Tensor,
    project_out: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    in_bias: Tensor | None = None,
    dw_bias: Tensor | None = None,
    out_bias: Tensor | None = None,
    center: bool = True,
    residual: bool = True,
) -> Tensor:
    """Its ops, one behind the other."""
    y = ops.mix(ops.normed(x, norm_weight, norm_bias, center), project_in, in_bias)
    y = ops.mix(ops.gate(y, dw, dw_bias), project_out, out_bias)
    return x + y if residual else y


def case(
    name: str,
    why: str,
    shape: Sequence[int],
    hidden: int,
    *,
    out: int = 0,
    norm: bool = True,
    norm_bias: bool = True,
    biases: bool = False,
    scale: float = 1.0,
    keep: str = "all",
) -> Case:
    """``out``: output channels, without a residual."""

    def make(rng: torch.Generator) -> Inputs:
        c = shape[1]
        made = {
            "x": scale * randn(rng, *shape),
            "project_in": randn(rng, 2 * hidden, c, 1, 1) / c**0.5,
            "dw": randn(rng, 2 * hidden, 1, 3, 3) / 3,
            "project_out": randn(rng, out or c, hidden, 1, 1) / hidden**0.5,
        }
        if norm:
            made["norm_weight"] = randn(rng, c)
        if norm and norm_bias:
            made["norm_bias"] = randn(rng, c)
        wide = {"in_bias": 2 * hidden, "dw_bias": 2 * hidden, "out_bias": out or c}
        return made | {name: randn(rng, wide[name]) for name in BIASES * biases}

    options = {"center": norm_bias, "residual": not out}
    given: dict[str, Any] = {
        "norm_weight": None,
        "norm_bias": None,
    }  # positional parameters, which may be None

    def call(**inputs: Any) -> Tensor:
        return cpl_kernels.feed_forward_half(**{**given, **inputs}, **options, keep=keep)

    # Five steps, each of which rounds what it is given: an error of a step is multiplied by what follows.
    naive, calls = both(half, **options)
    return Case(name, why, make, call, naive, terms=8, floor=1.0, calls=calls)


def _random(
    shape: tuple[int, int, int, int], hidden: int, out: int, norm: bool, biases: bool, keep: str
) -> Case:
    return case("random", "any shape and option", shape, hidden, out=out, norm=norm, biases=biases, keep=keep)


_R = torch.Generator().manual_seed(0)
X, N = torch.randn(2, 4, 5, 5, generator=_R), torch.ones(4)
I, D, O = torch.ones(12, 4, 1, 1), torch.ones(12, 1, 3, 3), torch.ones(4, 6, 1, 1)  # noqa: E741
call = cpl_kernels.feed_forward_half
REST = (I, D, O)

SPEC = OpSpec(
    name="feed_forward_half",
    cases=(
        case("model", "its first level, cut down", (1, 48, 5, 6), 127),
        case("bias free", "odd sizes", (2, 6, 5, 7), 7, norm_bias=False),
        case("biases", "other networks' convolutions have them", (2, 8, 6, 5), 11, biases=True),
        case("no norm", "the network alone, and other output channels", (2, 8, 4, 5), 6, out=5, norm=False),
        case("products", "less is kept", (2, 8, 6, 5), 11, biases=True, keep="products"),
        case("input", "only x is kept", (2, 8, 6, 5), 11, norm_bias=False, keep="input"),
        case("pixel", "only the centre of the filter counts", (2, 4, 1, 1), 3),
        case("no images", "sums over nothing", (0, 4, 3, 3), 3),
        case("no pixels", "sums over nothing", (2, 4, 0, 3), 3),
        case("large values", "the norm takes them away", (1, 8, 4, 5), 6, scale=1e3),
    ),
    small=(
        case("small", "no two dimensions of equal size", (3, 4, 2, 5), 6),
        case("small, biases", "the other options", (3, 4, 2, 5), 3, out=7, norm=False, biases=True, keep="input"),
    ),
    large=case("large", "more images and planes than threads", (3, 32, 20, 33), 40),
    random=st.builds(
        _random,
        st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(0, 9), st.integers(0, 12)),
        st.integers(1, 20),
        st.sampled_from([0, 0, 3]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["all", "products", "input"]),
    ),
    differentiable=("x", "project_in", "dw", "project_out", "norm_weight", "norm_bias", *BIASES),
    near_in_autocast=("in_bias", "out_bias"),
    images=True,
    # In 16 bits it rounds after each step; tests/kernels/test_halves.py compares it with its ops.
    dtypes=(torch.float32, torch.float64),
    float64=("reference", "native"),
    bad={
        "rank": Bad(lambda: call(X[0], N, N, I, D, O), ValueError, r"x must be \[B, C, H, W\].*\(4, 5, 5\)"),
        "dtype": Bad(lambda: call(X.long(), N, N, I, D, O), TypeError, "x.*int64"),
        "odd": Bad(lambda: call(X, N, N, I, D[:11], O), ValueError, r"even number.*\(11, 1, 3, 3\)"),
        "no outputs": Bad(lambda: call(X, N, N, I, D, O[:0], residual=False), ValueError, "at least one channel"),
        "norm": Bad(lambda: call(X, N[:2], N, I, D, O), ValueError, r"norm_weight.*\(4,\).*\(2,\)"),
        "in": Bad(lambda: call(X, N, N, I[:8], D, O), ValueError, r"project_in.*\(12, 4, 1, 1\).*\(8, 4, 1, 1\)"),
        "kernel": Bad(lambda: call(X, N, N, I, torch.ones(12, 1, 5, 5), O), ValueError, r"dw.*\(12, 1, 5, 5\)"),
        "out": Bad(lambda: call(X, N, N, I, D, O[:2]), ValueError, r"project_out.*\(4, 6, 1, 1\).*\(2, 6, 1, 1\)"),
        "bias": Bad(lambda: call(X, N, N, I, D, O, out_bias=N[:3]), ValueError, r"out_bias.*\(4,\).*\(3,\)"),
        "norm bias alone": Bad(lambda: call(X, None, N, *REST), ValueError, "norm_bias must be None without"),
        "eps": Bad(lambda: call(X, N, N, I, D, O, eps=-1.0), ValueError, "eps must be >= 0, got -1"),
        "keep": Bad(lambda: call(X, N, N, I, D, O, keep="less"), ValueError, "'products', 'input', got 'less'"),
        "device": Bad(lambda: call(X, N, N, I, D, O.to("meta")), ValueError, "project_out is on meta"),
        "backend": Bad(lambda: call(X, N, N, I, D, O, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)  # fmt: skip
