"""What the matrix needs to know of attention_half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.half_ops import Ops, both
from tests.kernels.spec import Bad, Case, Inputs, OpSpec, randn

BIASES = ("qkv_bias", "dw_bias", "project_bias")


def half(
    ops: Ops,
    x: Tensor,
    qkv: Tensor,
    dw: Tensor,
    temperature: Tensor,
    project: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    qkv_bias: Tensor | None = None,
    dw_bias: Tensor | None = None,
    project_bias: Tensor | None = None,
    center: bool = True,
    residual: bool = True,
) -> Tensor:
    """Its ops, one behind the other."""
    y = ops.mix(ops.normed(x, norm_weight, norm_bias, center), qkv, qkv_bias)
    y = ops.mix(ops.attend(ops.convolve(y, dw, dw_bias), temperature), project, project_bias)
    return x + y if residual else y


def case(
    name: str,
    why: str,
    heads: int,
    shape: Sequence[int],
    *,
    norm: bool = True,
    norm_bias: bool = True,
    biases: bool = False,
    kernel: int = 3,
    scale: float = 1.0,
    residual: bool = True,
    keep: str = "all",
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        c = shape[1]
        made = {
            "x": scale * randn(rng, *shape),
            "qkv": randn(rng, 3 * c, c, 1, 1) / c**0.5,
            "dw": randn(rng, 3 * c, 1, kernel, kernel) / kernel,
            "temperature": 1 + 0.5 * randn(rng, heads, 1, 1),
            "project": randn(rng, c, c, 1, 1) / c**0.5,
        }
        if norm:
            made["norm_weight"] = randn(rng, c)
        if norm and norm_bias:
            made["norm_bias"] = randn(rng, c)
        return made | {name: randn(rng, 3 * c if name != "project_bias" else c) for name in BIASES * biases}

    options = {"center": norm_bias, "residual": residual}
    given: dict[str, Any] = {
        "norm_weight": None,
        "norm_bias": None,
    }  # positional parameters, which may be None

    def call(**inputs: Any) -> Tensor:
        return cpl_kernels.attention_half(**{**given, **inputs}, **options, keep=keep)

    # Eight steps, each of which rounds what it is given: an error of a step is multiplied by what follows.
    naive, calls = both(half, **options)
    return Case(name, why, make, call, naive, terms=8, floor=1.0, calls=calls)


def _random(
    heads: int, each: int, shape: tuple[int, int, int], norm: bool, biases: bool, residual: bool, keep: str
) -> Case:
    size = (shape[0], heads * each, *shape[1:])
    return case(
        "random", "any shape and option", heads, size, norm=norm, biases=biases, residual=residual, keep=keep
    )


_R = torch.Generator().manual_seed(0)
X, T = torch.randn(2, 4, 5, 5, generator=_R), torch.ones(2, 1, 1)
N, Q, D, P = torch.ones(4), torch.ones(12, 4, 1, 1), torch.ones(12, 1, 3, 3), torch.ones(4, 4, 1, 1)
call = cpl_kernels.attention_half
REST = (Q, D, T, P)

SPEC = OpSpec(
    name="attention_half",
    cases=(
        case("model", "its first level, cut down", 1, (1, 48, 8, 9)),
        case("heads", "BiasFree norm, several heads", 4, (2, 12, 5, 7), norm_bias=False),
        case("biases", "other networks' convolutions have them", 2, (2, 8, 6, 5), biases=True),
        case("5x5", "a larger kernel between", 2, (1, 8, 6, 7), kernel=5),
        case("no norm", "the attention alone", 2, (2, 8, 4, 5), norm=False, residual=False),
        case("products", "less is kept", 2, (2, 8, 6, 5), biases=True, keep="products"),
        case("input", "only x is kept", 2, (2, 8, 6, 5), norm_bias=False, keep="input"),
        case("pixel", "cosines are 1 or -1", 2, (2, 4, 1, 1)),
        case("no images", "sums over nothing", 2, (0, 4, 3, 3)),
        case("no pixels", "sums over nothing", 2, (2, 4, 0, 3)),
        case("large values", "the norm takes them away", 2, (1, 8, 4, 5), scale=1e3),
    ),
    small=(
        case("small", "no two dimensions of equal size", 2, (3, 4, 2, 5)),
        case(
            "small, biases", "the other options", 2, (3, 4, 2, 5), norm=False, biases=True, residual=False, keep="input"
        ),
    ),
    large=case("large", "more heads and images than threads", 4, (3, 32, 20, 33)),
    random=st.builds(
        _random,
        st.integers(1, 4),
        st.integers(1, 6),
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 12)),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["all", "products", "input"]),
    ),
    differentiable=("x", "qkv", "dw", "temperature", "project", "norm_weight", "norm_bias", *BIASES),
    near_in_autocast=("qkv_bias", "project_bias"),
    images=True,
    # In 16 bits it rounds after each step; tests/kernels/test_halves.py compares it with its ops.
    dtypes=(torch.float32, torch.float64),
    float64=("reference", "native"),
    bad={
        "rank": Bad(lambda: call(X[0], N, N, Q, D, T, P), ValueError, r"x must be \[B, C, H, W\].*\(4, 5, 5\)"),
        "dtype": Bad(lambda: call(X.long(), N, N, Q, D, T, P), TypeError, "x.*int64"),
        "no channels": Bad(lambda: call(X[:, :0], N, N, Q, D, T, P), ValueError, "at least one channel"),
        "norm": Bad(lambda: call(X, N[:2], N, Q, D, T, P), ValueError, r"norm_weight.*\(4,\).*\(2,\)"),
        "norm bias": Bad(lambda: call(X, N, N[:2], Q, D, T, P), ValueError, r"norm_bias.*\(4,\).*\(2,\)"),
        "qkv": Bad(lambda: call(X, N, N, Q[:9], D, T, P), ValueError, r"qkv.*\(12, 4, 1, 1\).*\(9, 4, 1, 1\)"),
        "qkv missing": Bad(lambda: call(X, N, N, None, D, T, P), TypeError, "qkv.*NoneType"),  # type: ignore[arg-type]
        "dw": Bad(lambda: call(X, N, N, Q, D[:9], T, P), ValueError, r"dw.*\(12, 1, 3, 3\).*\(9, 1, 3, 3\)"),
        "kernel": Bad(lambda: call(X, N, N, Q, D[..., :1, :1], T, P), ValueError, "k one of 3, 5, 7"),
        "heads": Bad(lambda: call(X, N, N, Q, D, torch.ones(3, 1, 1), P), ValueError, "divides the 4 .*3 heads"),
        "project": Bad(lambda: call(X, N, N, Q, D, T, P[:2]), ValueError, r"project.*\(4, 4, 1, 1\).*\(2, 4, 1, 1\)"),
        "bias": Bad(lambda: call(X, N, N, Q, D, T, P, dw_bias=N), ValueError, r"dw_bias.*\(12,\).*\(4,\)"),
        "norm bias alone": Bad(lambda: call(X, None, N, *REST), ValueError, "norm_bias must be None without"),
        "eps": Bad(lambda: call(X, N, N, Q, D, T, P, eps=-1.0), ValueError, "eps must be >= 0, got -1"),
        "keep": Bad(lambda: call(X, N, N, Q, D, T, P, keep="less"), ValueError, "'products', 'input', got 'less'"),
        "device": Bad(lambda: call(X, N, N, Q.to("meta"), D, T, P), ValueError, "qkv is on meta"),
        "backend": Bad(lambda: call(X, N, N, Q, D, T, P, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)  # fmt: skip
