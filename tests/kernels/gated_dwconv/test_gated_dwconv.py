"""What is special to gated_dwconv; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import core
from cpl_kernels.gated_dwconv import reference
from tests.kernels import targets
from tests.kernels.gated_dwconv.spec import SPEC, case, naive
from tests.kernels.targets import Target

SMALL = SPEC.small[0]


def test_channels_last_comes_out_contiguous() -> None:
    """The fake says so; torch.compile would go wrong if the implementation did not."""
    x, weight, bias = SMALL.inputs(torch.float32).values()
    y = cpl_kernels.gated_dwconv(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert y.is_contiguous()
    torch.testing.assert_close(y, cpl_kernels.gated_dwconv(x, weight, bias))


def test_definition_has_second_derivatives() -> None:
    tiny = case("tiny", "second derivatives by differences", (1, 4, 2, 2))
    inputs = [x.requires_grad_() for x in tiny.inputs(torch.float64).values()]
    assert torch.autograd.gradgradcheck(lambda *a: reference.gated_dwconv(*a, gelu=True), inputs)


def test_is_torchs_conv_gelu_and_product() -> None:
    x, weight, bias = SMALL.inputs(torch.float64).values()
    a, gate = F.conv2d(x, weight, bias, padding=1, groups=4).chunk(2, dim=1)
    torch.testing.assert_close(cpl_kernels.gated_dwconv(x, weight, bias), F.gelu(a) * gate)


def test_gradients_of_fp32_weights_beside_half_activations_are_fp32() -> None:
    x, weight, bias = (t.requires_grad_() for t in SMALL.inputs(torch.float32).values())
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
    inputs = [t.float() for t in SMALL.inputs(torch.float64).values()]
    inputs = [t.double() if name == wide else t for name, t in zip(names, inputs, strict=True)]
    dy = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(2)).double()
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
    x, weight, bias = (t.float() for t in SMALL.inputs(torch.float64).values())
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


@targets.on("gated_dwconv")
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_gives_the_output_along(dtype: torch.dtype, gelu: bool, target: Target) -> None:
    """To the bit, and the gradients are those of the backward alone."""
    ops = torch.ops.cpl_kernels
    for small in SPEC.small:
        x, weight, *rest = small.inputs(dtype).values()
        args = (x, weight, rest[0] if rest else None, gelu, target.backend or "")
        with target.serving("gated_dwconv"):
            y = ops.gated_dwconv(*args)
            dy = torch.randn_like(y)
            gradients = ops.gated_dwconv_backward(dy, *args)
            found = ops.gated_dwconv_backward_and_output(dy, *args)
        for got, gold in zip(found, (*gradients, y), strict=True):
            torch.testing.assert_close(got, gold, rtol=0, atol=0, equal_nan=True)
            assert got.stride() == gold.stride()


def test_the_backward_with_output_is_an_op() -> None:
    x, weight, bias = SMALL.inputs(torch.float32).values()
    dy = torch.randn(2, 2, 3, 5)
    op = torch.ops.cpl_kernels.gated_dwconv_backward_and_output.default
    torch.library.opcheck(op, (dy, x, weight, bias, True, ""))


@targets.on("gated_dwconv")
def test_tails_of_gelu(target: Target) -> None:
    """The lower tail keeps its digits to a few parts in a million, and NaN stays NaN."""
    a = torch.linspace(-9, 9, 4001)
    centre = torch.zeros(2, 1, 3, 3)
    centre[:, :, 1, 1] = 1
    x = torch.stack((a, torch.ones_like(a)))[None, :, None]  # [1, 2, 1, 4001]
    with target.serving("gated_dwconv"):
        y = cpl_kernels.gated_dwconv(x, centre, backend=target.backend).flatten().double()
        nan = cpl_kernels.gated_dwconv(torch.full((1, 2, 1, 1), torch.nan), centre, backend=target.backend)
    assert nan.isnan().all()
    exact = F.gelu(a.double())
    assert ((y - exact).abs() <= 1e-6 * a.abs().clamp(min=1)).all()
    if target.name == "native":  # torch's own, as the reference calls it, keeps absolute digits only
        exact = a.double() * 0.5 * torch.erfc(-a.double() * math.sqrt(0.5))
        assert ((y - exact).abs() <= 1e-5 * exact.abs()).all()
