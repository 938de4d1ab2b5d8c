"""gated_dwconv against nine shifted products and the error function, and against torch's own modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.gated_dwconv import reference
from tests.kernels import harness, matrix
from tests.kernels.matrix import Case, randn


def naive(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu") -> Tensor:
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


def case(name: str, shape: tuple[int, ...], activation: str = "gelu", with_bias: bool = True) -> Case:
    def make(rng: torch.Generator) -> matrix.Inputs:
        x, weight, bias = randn(rng, *shape), randn(rng, shape[1], 1, 3, 3), randn(rng, shape[1])
        return (x, weight, bias) if with_bias else (x, weight)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str | None = None) -> Tensor:
        return cpl_kernels.gated_dwconv(x, weight, bias, activation, backend=backend)

    return Case(name, make, call, lambda *a: naive(*a, activation=activation), terms=8)


CASES = [
    case("model's first level, cut down", (1, 2 * 127, 4, 6), with_bias=False),
    case("bias", (2, 6, 5, 7)),
    case("simple gate", (2, 6, 5, 7), "none"),
    case("simple gate without bias", (2, 4, 3, 3), "none", with_bias=False),
    case("beyond a tile", (1, 4, 17, 65)),
    case("one pixel: only the centre counts", (3, 4, 1, 1)),
    case("one row", (2, 4, 1, 9)),
    case("one column", (2, 4, 9, 1)),
    case("no images", (0, 4, 3, 3)),
    case("no pixels", (2, 4, 0, 3)),
]
SMALL = [case("gelu", (1, 4, 3, 2)), case("none, no bias", (1, 4, 2, 3), "none", with_bias=False)]


BACKENDS = [
    "reference",
    pytest.param("native", marks=pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)),
]


@matrix.of(CASES)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    matrix.check_parity(case, dtype, backend=backend)


@matrix.of(SMALL)
@pytest.mark.parametrize("layout", matrix.LAYOUTS)
@pytest.mark.parametrize("dy_layout", matrix.LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(case: Case, layout: str, dy_layout: str, backend: str) -> None:
    matrix.check_parity(case, torch.float32, layout, dy_layout, backend=backend)


def test_channels_last_comes_out_contiguous() -> None:
    """The fake says so; torch.compile would go wrong if the implementation did not."""
    x, weight, bias = CASES[1].inputs(torch.float32)
    y = cpl_kernels.gated_dwconv(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert y.is_contiguous()
    torch.testing.assert_close(y, cpl_kernels.gated_dwconv(x, weight, bias))


@matrix.of(SMALL)
def test_matrix(case: Case) -> None:
    matrix.check_gradients(case)
    matrix.check_subsets_agree(case)
    matrix.check_repeats_bitwise(case)
    matrix.check_compiles(case)
    matrix.check_no_second_derivative(case)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_opcheck(gelu: bool, with_bias: bool) -> None:
    x, weight = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
    bias = torch.randn(4, requires_grad=True) if with_bias else None
    torch.library.opcheck(torch.ops.cpl_kernels.gated_dwconv.default, (x, weight, bias, gelu, "reference"))


def test_definition_has_second_derivatives() -> None:
    inputs = [x.requires_grad_() for x in case("tiny", (1, 4, 2, 2)).inputs(torch.float64)]
    assert torch.autograd.gradgradcheck(lambda *a: reference.gated_dwconv(*a, gelu=True), inputs)


def test_is_torchs_conv_gelu_and_product() -> None:
    x, weight, bias = CASES[1].inputs(torch.float64)
    a, gate = F.conv2d(x, weight, bias, padding=1, groups=6).chunk(2, dim=1)
    torch.testing.assert_close(cpl_kernels.gated_dwconv(x, weight, bias), F.gelu(a) * gate)


def test_autocast_casts_x_and_keeps_the_weights() -> None:
    matrix.check_under_autocast(SMALL[0], expected=torch.bfloat16)
    x, weight, bias = SMALL[0].inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cpl_kernels.gated_dwconv(x, weight, bias)
    assert torch.equal(inside, cpl_kernels.gated_dwconv(x.bfloat16(), weight, bias))


def test_gradients_of_fp32_weights_beside_half_activations_are_fp32() -> None:
    x, weight, bias = (t.requires_grad_() for t in SMALL[0].inputs(torch.float32))
    cpl_kernels.gated_dwconv(x.bfloat16(), weight, bias).float().square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (x.bfloat16(), weight, bias)]
    naive(*exact).square().sum().backward()
    assert (weight.grad.dtype, bias.grad.dtype) == (torch.float32, torch.float32)
    # y, and so dy, is rounded to bf16: a relative error of 2^-9 each.
    torch.testing.assert_close(
        weight.grad.double(), exact[1].grad, rtol=0.02, atol=0.02 * float(exact[1].grad.abs().max())
    )


@pytest.mark.parametrize("wide", ["x", "weight", "bias"])
def test_float64_in_any_input_computes_in_float64(wide: str) -> None:
    """Values, not only dtypes: float32 arithmetic would be 1e-8 off at best."""
    names = ("x", "weight", "bias")
    inputs = [t.float() for t in SMALL[0].inputs(torch.float64)]
    inputs = [t.double() if name == wide else t for name, t in zip(names, inputs, strict=True)]
    dy = torch.randn(1, 2, 3, 2, generator=torch.Generator().manual_seed(2)).double()
    x, weight, bias = inputs
    backends = ["reference"] + (["native"] if wide == "x" and core.available() else [])
    exact = [t.double().requires_grad_() for t in inputs]
    dweight, dbias = torch.autograd.grad(naive(*exact), exact[1:], dy)
    for backend in backends:
        y = torch.ops.cpl_kernels.gated_dwconv_backward(dy, x, weight, bias, True, backend)
        assert (y[1].dtype, y[2].dtype) == (torch.float64, torch.float64)
        torch.testing.assert_close(y[1], dweight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(y[2], dbias, rtol=1e-12, atol=1e-12)
    args = [t.requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.cpl_kernels.gated_dwconv.default, (*args, True, ""))


@pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)
@pytest.mark.parametrize("wide", ["weight", "bias"])
def test_native_refuses_float64_parameters_of_a_float32_image(wide: str) -> None:
    x, weight, bias = (t.float() for t in SMALL[0].inputs(torch.float64))
    inputs = (x, weight.double(), bias) if wide == "weight" else (x, weight, bias.double())
    with pytest.raises(RuntimeError, match=f"{wide} is float64"):
        cpl_kernels.gated_dwconv(*inputs, backend="native")


@pytest.mark.parametrize("sign", [1, -1])
def test_gelu_far_from_zero(sign: int) -> None:
    """Where erf is flat, gelu(a) is a or 0, with slope 1 or 0, and no NaN from 0 * inf."""
    x = torch.full((1, 2, 1, 1), 1e4).requires_grad_()
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 1, 1], weight[1, 0, 1, 1] = sign, 1
    y = cpl_kernels.gated_dwconv(x, weight)
    y.backward(torch.ones_like(y))
    assert y.item() == (1e8 if sign > 0 else 0)
    assert x.grad.flatten().tolist() == ([1e4, 1e4] if sign > 0 else [0, 0])


def test_keeps_x_and_weights_only() -> None:
    x, weight = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.gated_dwconv(x, weight)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}


X, W = torch.zeros(2, 4, 3, 3), torch.ones(4, 1, 3, 3)
conv = cpl_kernels.gated_dwconv
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rank": (lambda: conv(X[0], W), ValueError, r"\[B, 2C, H, W\].*\(4, 3, 3\)"),
    "odd": (lambda: conv(X[:, :3], W[:3]), ValueError, r"even number.*\(2, 3, 3, 3\)"),
    "no channels": (lambda: conv(X[:, :0], W[:0]), ValueError, r"even number.*\(2, 0, 3, 3\)"),
    "dtype": (lambda: conv(X.int(), W), TypeError, "x must be.*int32"),
    "weight": (lambda: conv(X, W[:2]), ValueError, r"\(4, 1, 3, 3\).*\(2, 1, 3, 3\)"),
    "kernel 5": (lambda: conv(X, torch.ones(4, 1, 5, 5)), ValueError, r"\(4, 1, 5, 5\)"),
    "weight dtype": (lambda: conv(X, W.long()), TypeError, "weight.*int64"),
    "bias": (lambda: conv(X, W, torch.ones(2)), ValueError, r"bias.*\(4,\).*\(2,\)"),
    "bias dtype": (lambda: conv(X, W, torch.ones(4).int()), TypeError, "bias.*int32"),
    "activation": (lambda: conv(X, W, None, "relu"), ValueError, "'gelu', 'none', got 'relu'"),
    "device": (lambda: conv(X, W.to("meta")), ValueError, "weight is on meta"),
    "backend": (lambda: conv(X, W, backend="cuda"), RuntimeError, "gated_dwconv.*'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.skipif(not core.available(), reason=core.MISSING_BECAUSE)
def test_native_has_the_same_bits_at_any_number_of_threads() -> None:
    inputs = case("many rows, wide", (3, 10, 70, 67)).inputs(torch.float32)
    dy = torch.randn(3, 5, 70, 67, generator=torch.Generator().manual_seed(2))
    before, runs = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(harness.gradients(lambda *a: cpl_kernels.gated_dwconv(*a, backend="native"), inputs, dy))
    torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dimension", [0, 1])
def test_offsets_past_two_to_the_31(dimension: int, backend: str) -> None:
    small = case("far", (2, 4, 3, 5))
    inputs = small.inputs(torch.bfloat16)
    dy = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = harness.gradients(lambda *a: small.call(*a, backend=backend), inputs, dy)
    far = [harness.beyond_int32(t.shape, dimension, torch.bfloat16).copy_(t) for t in (inputs[0], dy)]
    got = harness.gradients(lambda *a: small.call(*a, backend=backend), (far[0], *inputs[1:]), far[1])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tails_of_gelu(backend: str) -> None:
    """The lower tail keeps its digits to a few parts in a million, and NaN stays NaN."""
    a = torch.linspace(-9, 9, 4001)
    centre = torch.zeros(2, 1, 3, 3)
    centre[:, :, 1, 1] = 1
    x = torch.stack((a, torch.ones_like(a)))[None, :, None]  # [1, 2, 1, 4001]
    y = cpl_kernels.gated_dwconv(x, centre, backend=backend).flatten().double()
    exact = F.gelu(a.double())
    assert ((y - exact).abs() <= 1e-6 * a.abs().clamp(min=1)).all()
    if backend == "native":  # torch's own, as the reference calls it, keeps absolute digits only
        exact = a.double() * 0.5 * torch.erfc(-a.double() * math.sqrt(0.5))
        assert ((y - exact).abs() <= 1e-5 * exact.abs()).all()
    nan = cpl_kernels.gated_dwconv(torch.full((1, 2, 1, 1), torch.nan), centre, backend=backend)
    assert nan.isnan().all()
