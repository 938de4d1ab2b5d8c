"""What the matrix needs to know of layer_norm2d."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

import cpl_kernels
from tests.kernels.spec import Bad, Case, Inputs, OpSpec, randn

EPS = 1e-5


def naive(x: Tensor, weight: Tensor, bias: Tensor | None = None, center: bool = True) -> Tensor:
    mean = x.mean(1, keepdim=True)
    deviation = torch.sqrt(((x - mean) ** 2).mean(1, keepdim=True) + EPS)
    y = (x - mean if center else x) / deviation * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def terms(inputs: Inputs, gradients: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Magnitudes per element. Rounding in mean and variance moves 1 / deviation by eps of ``size``."""
    x, weight, dy = inputs["x"], inputs["weight"].abs()[:, None, None], gradients[0].abs()
    mean = x.mean(1, keepdim=True)
    rstd = ((x - mean).square().mean(1, keepdim=True) + EPS).rsqrt()
    size = (x.abs() + mean.abs()) * rstd  # of the normalised value before its subtraction
    bias = inputs["bias"].abs()[:, None, None] if "bias" in inputs else 0
    g = dy * weight
    dx = rstd * (g + size * (g * size).mean(1, keepdim=True) + g.mean(1, keepdim=True)) * (1 + size)
    return {
        "y": (size * weight + bias) * (1 + size),
        "gradient of x": dx,
        "gradient of weight": (dy * size * (1 + size)).sum((0, 2, 3)),
        "gradient of bias": dy.sum((0, 2, 3)),
    }


def away_from_zero(rng: torch.Generator, shape: Sequence[int]) -> Tensor:
    return randn(rng, *shape) * 2 + 1


def case(
    name: str,
    why: str,
    shape: Sequence[int],
    center: bool = True,
    with_bias: bool = True,
    x: Callable[[torch.Generator, Sequence[int]], Tensor] = away_from_zero,
) -> Case:
    def make(rng: torch.Generator) -> Inputs:
        made = {"x": x(rng, shape), "weight": randn(rng, shape[1]) + 1, "bias": randn(rng, shape[1])}
        return made if with_bias else {n: made[n] for n in ("x", "weight")}

    call = partial(cpl_kernels.layer_norm2d, eps=EPS, center=center)
    return Case(name, why, make, call, partial(naive, center=center), terms)


SHAPES = {
    "model": ((2, 48, 16, 16), "the model's first level, cut down"),
    "wide": ((1, 704, 4, 4), "the widest of the model: few pixels, many channels"),
    "odd": ((2, 20, 17, 19), "rows that no vector length divides"),
    "beyond": ((1, 3, 1, 257), "one pixel beyond a tile of 256, and thin"),
    "straddling": ((2, 9, 9, 29), "CUDA's tiles straddle no image, and a block for fp64 has several"),
    "wider": ((1, 1250, 2, 2), "CUDA's threads hold the most channels they can, rows of a tile get narrower"),
    "lanes": ((1, 33, 5, 13), "one channel more than a warp has lanes"),
    "column": ((3, 5, 33, 1), "one pixel wide"),
    "pixel": ((2, 7, 1, 1), "a single pixel"),
    "channel": ((4, 1, 3, 5), "one channel: the variance is zero, y is the bias"),
    "no images": ((0, 8, 4, 4), "sums over nothing"),
    "no pixels": ((2, 8, 0, 4), "sums over nothing"),
}
X, W = torch.zeros(2, 3, 4, 4), torch.ones(3)
call = cpl_kernels.layer_norm2d

SPEC = OpSpec(
    name="layer_norm2d",
    cases=(
        *(case(name, why, shape) for name, (shape, why) in SHAPES.items()),
        *(case(f"{name}, not centred", why, shape, center=False) for name, (shape, why) in SHAPES.items()),
        case("no bias", "Restormer's BiasFree", (2, 12, 5, 6), center=False, with_bias=False),
        case("large mean", "a variance in one pass (mean of squares minus square of mean) is off by orders of "
             "magnitude", (1, 32, 8, 8), x=lambda rng, shape: away_from_zero(rng, shape) + 1000),
        case("equal channels", "a variance of zero among many channels", (2, 6, 3, 3),
             x=lambda rng, shape: torch.full(shape, 0.5, dtype=torch.float64)),
        case("1e4", "squares beyond fp16's range", (1, 6, 3, 3),
             x=lambda rng, shape: torch.where(randn(rng, *shape) > 0, 1e4, -1e4).double()),
    ),
    small=(
        case("small", "two images, several channels and pixels, none of equal size", (2, 6, 5, 4)),
        case("row", "one row, so that pixels have one stride in any layout", (2, 3, 1, 4), False, False),
    ),
    large=case("large", "several tiles for each of three threads, and a tail", (3, 48, 64, 65)),
    random=st.builds(
        case,
        st.just("random"),
        st.just("any shape and option"),
        st.tuples(st.integers(0, 3), st.integers(1, 70), st.integers(0, 9), st.integers(0, 40)),
        st.booleans(),
        st.booleans(),
    ),
    differentiable=("x", "weight", "bias"),
    images=True,
    bad={
        "rank": Bad(lambda: call(X[0], W), ValueError, r"\[B, C, H, W\].*\(3, 4, 4\)"),
        "weight size": Bad(lambda: call(X, torch.ones(4)), ValueError, r"weight.*\(3,\).*\(4,\)"),
        "bias size": Bad(lambda: call(X, W, torch.ones(1)), ValueError, r"bias.*\(1,\)"),
        "integer x": Bad(lambda: call(X.int(), W), TypeError, "x must be float32.*int32"),
        "integer weight": Bad(lambda: call(X, W.long()), TypeError, "weight.*int64"),
        "not a tensor": Bad(lambda: call([1.0], W), TypeError, "x must be a torch.Tensor, got list"),  # type: ignore[arg-type]
        "no channels": Bad(lambda: call(X[:, :0], W[:0]), ValueError, "at least one channel"),
        "eps": Bad(lambda: call(X, W, eps=-1.0), ValueError, "eps must be >= 0, got -1"),
        "eps NaN": Bad(lambda: call(X, W, eps=float("nan")), ValueError, "eps.*nan"),
        "device": Bad(lambda: call(X, W.to("meta")), ValueError, "weight is on meta but x is on cpu"),
        "backend": Bad(lambda: call(X, W, backend="fast"), ValueError, "'reference'.*'fast'"),
    },
)  # fmt: skip
