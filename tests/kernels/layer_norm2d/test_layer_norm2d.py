"""layer_norm2d: every backend against the definition in fp64, by the rule of tests/kernels/harness.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.layer_norm2d import reference
from tests.conftest import INTERPRETED
from tests.kernels import harness

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
)
TRITON = pytest.param("triton", marks=pytest.mark.interpreter)
BACKENDS = [TRITON] if INTERPRETED else ["reference", NATIVE]  # make test runs pytest once for each
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

SHAPES = {
    (2, 48, 16, 16): "the model's first level, cut down",
    (1, 704, 4, 4): "the widest of the model: few pixels, many channels",
    (2, 20, 17, 19): "odd sizes: rows that no vector length divides",
    (1, 3, 1, 257): "one pixel beyond a tile of 256, and thin",
    (3, 5, 33, 1): "one pixel wide",
    (2, 7, 1, 1): "a single pixel",
    (4, 1, 3, 5): "one channel: the variance is zero, y is the bias",
    (0, 8, 4, 4): "no images",
    (2, 8, 0, 4): "no pixels",
}


def make(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x away from zero mean, weight, bias and dy, each drawn in ``dtype``."""
    rng = torch.Generator().manual_seed(seed)
    channels = shape[1]
    x = torch.randn(shape, generator=rng, dtype=torch.float64) * 2 + 1
    dy = torch.randn(shape, generator=rng, dtype=torch.float64)
    weight = torch.randn(channels, generator=rng, dtype=torch.float64) + 1
    bias = torch.randn(channels, generator=rng, dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), dy.to(dtype)


def terms(
    x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor, eps: float, center: bool
) -> list[Tensor]:
    """Magnitudes that are summed into y, dx, dweight and dbias, per element (see the harness)."""
    x, weight, dy = x.double(), weight.double()[:, None, None], dy.double()
    mean, rstd = (t.unsqueeze(1) for t in reference.statistics(x, eps))
    size = (x.abs() + mean.abs()) * rstd  # of h before its subtraction
    g = (dy * weight).abs()
    y = size * weight.abs() + (0 if bias is None else bias.double().abs()[:, None, None])
    # How far rounding in the mean and variance moves rstd: by eps relative to the cancelled size.
    dx = rstd * (g + size * (g * size).mean(1, keepdim=True) + g.mean(1, keepdim=True)) * (1 + size)
    out = [y * (1 + size), dx, (dy.abs() * size * (1 + size)).sum((0, 2, 3))]
    return out if bias is None else [*out, dy.abs().sum((0, 2, 3))]


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    *,
    center: bool,
    backend: str,
    eps: float = 1e-5,
) -> None:
    """Output and all gradients of ``backend`` against gold."""
    bf16_ulps = harness.INTERPRETER_BF16_ULPS if backend == "triton" and INTERPRETED else 0.5

    def run(dtype: torch.dtype, name: str) -> list[Tensor]:
        inputs = [None if t is None else t.to(dtype) for t in (x, weight, bias)]
        return harness.gradients(
            lambda *a: cpl_kernels.layer_norm2d(*a, eps, center, backend=name) if bias is not None
            else cpl_kernels.layer_norm2d(a[0], a[1], None, eps, center, backend=name),
            inputs, dy.to(dtype),
        )  # fmt: skip

    gold, same, out = run(torch.float64, "reference"), run(x.dtype, "reference"), run(x.dtype, backend)
    names = ["y", "dx", "dweight", "dbias"]
    for name, o, s, g, t in zip(
        names, out, same, gold, terms(x, weight, bias, dy, eps, center), strict=False
    ):
        harness.assert_no_worse(f"{backend} {name}", o, s, g, t, result_ulps=bf16_ulps)


def skip_if_unserved(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.float64:
        pytest.skip(
            reason="the Triton kernel has no float64 and says so (test_explicit_backend_never_falls_back)"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype, center: bool, backend: str) -> None:
    skip_if_unserved(backend, dtype)
    check(*make(shape, dtype), center=center, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layouts", list(itertools.product(harness.STRIDES, repeat=2)), ids="-".join)
def test_strides_of_input_and_incoming_gradient(layouts: tuple[str, str], backend: str) -> None:
    x, weight, bias, dy = make((2, 6, 5, 4), torch.float32)
    x, dy = harness.strided(layouts[0], x), harness.strided(layouts[1], dy)
    check(x, weight, bias, dy, center=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("center", [True, False])
def test_channels_last_gradients(center: bool, backend: str) -> None:
    """Channels-last has a kernel of its own; more pixels than it sums before it goes to fp64."""
    x, weight, bias, dy = make((2, 24, 11, 13), torch.float32)
    x, dy = harness.strided("channels_last", x), harness.strided("channels_last", dy)
    check(x, weight, bias, dy, center=center, backend=backend)
    y = cpl_kernels.layer_norm2d(x, weight, bias, backend=backend)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_bias_and_mixed_dtypes(backend: str) -> None:
    """Parameters stay fp32 beside bf16 activations, as under autocast; their gradients are fp32."""
    x, weight, _, dy = make((2, 12, 5, 6), torch.float32)
    check(x, weight, None, dy, center=False, backend=backend)
    half, weight = x.bfloat16(), weight.requires_grad_()
    y = cpl_kernels.layer_norm2d(half, weight, backend=backend)
    y.backward(dy.bfloat16())
    assert y.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_mean_loses_no_digits(backend: str) -> None:
    """A one-pass variance (mean of squares minus square of mean) fails here by orders of magnitude."""
    x, weight, bias, dy = make((1, 32, 8, 8), torch.float32)
    check(x + 1000, weight, bias, dy, center=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_in_their_pixel(backend: str) -> None:
    x, weight, bias, _ = make((1, 8, 2, 4), torch.float32)
    x[0, 3, 0, 1], x[0, 5, 1, 2] = float("nan"), float("inf")
    y = cpl_kernels.layer_norm2d(x, weight, bias, backend=backend)
    bad = y.isnan().any(1)[0]
    assert bad.tolist() == [[False, True, False, False], [False, False, True, False]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time(backend: str) -> None:
    x, weight, bias, dy = make((2, 48, 40, 33), torch.float32)
    runs = [
        harness.gradients(lambda *a: cpl_kernels.layer_norm2d(*a, backend=backend), (x, weight, bias), dy)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_at_any_number_of_threads(layout: str) -> None:
    x, weight, bias, dy = make((3, 48, 64, 65), torch.float32)
    x, dy = harness.strided(layout, x), harness.strided(layout, dy)
    runs = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(
            harness.gradients(
                lambda *a: cpl_kernels.layer_norm2d(*a, backend="native"), (x, weight, bias), dy
            )
        )
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_offsets_past_two_to_the_31(dimension: int, channels_last: bool, backend: str) -> None:
    """Memory is promised, not allocated: a 32-bit offset would crash or read the wrong page."""
    x, weight, bias, dy = make((2, 3, 2, 4), torch.bfloat16)
    dimension = 2 if channels_last and dimension == 1 else dimension  # there, far pixels instead of channels
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    if dimension == 2:  # one image row per stride: keep the pixels walkable by one stride
        x, dy = x[:, :, :, :1], dy[:, :, :, :1]
    shape = [x.shape[d] for d in order]
    far = [harness.beyond_int32(shape, order.index(dimension), torch.bfloat16) for _ in range(2)]
    far_x, far_dy = (t.permute(*(order.index(d) for d in range(4))) for t in far)
    far_x.copy_(x)
    far_dy.copy_(dy)
    check(far_x, weight, bias, far_dy, center=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [c for c in itertools.product([False, True], repeat=3) if any(c)], ids=str)
def test_every_subset_of_gradients(wanted: tuple[bool, ...], backend: str) -> None:
    x, weight, bias, dy = make((2, 6, 3, 4), torch.float32)
    full = harness.gradients(lambda *a: cpl_kernels.layer_norm2d(*a, backend=backend), (x, weight, bias), dy)
    leaves = [t.requires_grad_(w) for t, w in zip((x, weight, bias), wanted, strict=True)]
    cpl_kernels.layer_norm2d(*leaves, backend=backend).backward(dy)
    for leaf, want, expected in zip(leaves, wanted, full[1:], strict=True):
        assert (leaf.grad is None) is not want
        assert leaf.grad is None or torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("center", [True, False])
def test_gradcheck(center: bool, backend: str) -> None:
    x, weight, bias, _ = (t.requires_grad_() for t in make((2, 5, 2, 3), torch.float64))
    assert torch.autograd.gradcheck(
        lambda *a: cpl_kernels.layer_norm2d(*a, 1e-5, center, backend=backend), (x, weight, bias)
    )


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped"])
def test_opcheck(layout: str, backend: str) -> None:
    x, weight, bias, _ = make((2, 5, 3, 4), torch.float32)
    x = harness.strided(layout, x).detach().requires_grad_()
    args = (x, weight.requires_grad_(), bias.requires_grad_(), 1e-5, True, backend)
    opcheck(torch.ops.cpl_kernels.layer_norm2d.default, args)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_compiles_without_graph_breaks(backend: str) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return cpl_kernels.layer_norm2d(x * 2, weight, bias, backend=backend).relu()

    x, weight, bias, dy = make((2, 6, 3, 4), torch.float32)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = harness.gradients(function, (x, weight, bias), dy)
    for got, want in zip(harness.gradients(compiled, (x, weight, bias), dy), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_autocast_keeps_the_dtype(backend: str) -> None:
    """No cast to fp32 and back: the statistics are fp32 anyway, and the parameters may be."""
    x, weight, bias, _ = make((1, 6, 3, 4), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = cpl_kernels.layer_norm2d(x.bfloat16(), weight, bias, backend=backend)
        full = cpl_kernels.layer_norm2d(x, weight, bias, backend=backend)
    assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)


def test_second_derivative_is_an_error_and_the_definition_has_one() -> None:
    x, weight, bias, _ = (t.requires_grad_() for t in make((1, 3, 2, 2), torch.float64))
    (dx,) = torch.autograd.grad(
        cpl_kernels.layer_norm2d(x, weight, bias).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()
    assert torch.autograd.gradgradcheck(
        lambda *a: reference.layer_norm2d(*a, 1e-5, True), (x, weight, bias)
    )  # fmt: skip


def test_is_pytorchs_layer_norm_over_channels() -> None:
    x, weight, bias, _ = make((2, 6, 3, 4), torch.float64)
    expected = torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(cpl_kernels.layer_norm2d(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


X, W = torch.zeros(2, 3, 4, 4), torch.ones(3)
BAD = {
    "rank": (lambda: cpl_kernels.layer_norm2d(X[0], W), ValueError, r"\[B, C, H, W\].*\(3, 4, 4\)"),
    "weight size": (
        lambda: cpl_kernels.layer_norm2d(X, torch.ones(4)),
        ValueError,
        r"weight.*\(3,\).*\(4,\)",
    ),
    "bias size": (lambda: cpl_kernels.layer_norm2d(X, W, torch.ones(1)), ValueError, r"bias.*\(1,\)"),
    "integer x": (lambda: cpl_kernels.layer_norm2d(X.int(), W), TypeError, "x must be float32.*int32"),
    "integer weight": (lambda: cpl_kernels.layer_norm2d(X, W.long()), TypeError, "weight.*int64"),
    "not a tensor": (
        lambda: cpl_kernels.layer_norm2d([1.0], W),
        TypeError,
        "x must be a torch.Tensor, got list",
    ),
    "no channels": (lambda: cpl_kernels.layer_norm2d(X[:, :0], W[:0]), ValueError, "at least one channel"),
    "eps": (lambda: cpl_kernels.layer_norm2d(X, W, eps=-1.0), ValueError, "eps must be >= 0, got -1"),
    "eps NaN": (lambda: cpl_kernels.layer_norm2d(X, W, eps=float("nan")), ValueError, "eps.*nan"),
    "device": (
        lambda: cpl_kernels.layer_norm2d(X, W.to("meta")),
        ValueError,
        "weight is on meta but x is on cpu",
    ),
    "backend": (lambda: cpl_kernels.layer_norm2d(X, W, backend="fast"), ValueError, "'reference'.*'fast'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(INTERPRETED, reason="the interpreter makes Triton serve CPU tensors")
def test_explicit_backend_never_falls_back() -> None:
    with pytest.raises(RuntimeError, match="'triton' cannot serve this call.*x is on cpu"):
        cpl_kernels.layer_norm2d(X, W, backend="triton")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve this call"):
        cpl_kernels.layer_norm2d(X, W, backend="cuda")
    with pytest.raises(RuntimeError, match="float64"):
        cpl_kernels.layer_norm2d(X.double(), W, backend="triton")
