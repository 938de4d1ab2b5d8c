"""The 1x1 convolution against torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cpl.nn import pointwise
from cpl.nn.pointwise import _NarrowProduct, pointwise_conv, pointwise_conv_backward
from cpl_kernels import use_backend


def test_on_a_cpu_it_is_the_convolution() -> None:
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    for images in (x, x.contiguous(memory_format=torch.channels_last), x[0]):
        torch.testing.assert_close(pointwise_conv(images, weight), F.conv2d(images, weight))
    assert torch.autograd.gradcheck(pointwise_conv, (x, weight))


def test_a_network_on_a_backend_that_the_op_lacks() -> None:
    """Asked for as a whole, it runs on the ops that have it."""
    x, weight = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(4, 6, 1, 1, requires_grad=True)
    with use_backend("triton"):
        y = pointwise_conv(x, weight)
        found = pointwise_conv_backward(torch.ones_like(y), x.detach(), weight.detach(), (True, True))
    torch.testing.assert_close(y, F.conv2d(x, weight))
    expected = torch.autograd.grad(F.conv2d(x, weight), (x, weight), torch.ones_like(y))
    torch.testing.assert_close(found, expected)


def test_a_narrow_image_meets_a_wide_weight_in_both_passes() -> None:
    """Without autocast a weight in float32 is not rounded to the image's 16 bits, whoever keeps what."""
    torch.manual_seed(0)
    x, weight = (
        torch.randn(1, 64, 4, 4).bfloat16().requires_grad_(),
        torch.randn(8, 64, 1, 1, requires_grad=True),
    )
    y = pointwise_conv(x, weight)
    dy = torch.randn(1, 8, 4, 4).bfloat16()
    expected = torch.autograd.grad(y, (x, weight), dy)
    found = pointwise_conv_backward(dy, x.detach(), weight.detach(), (True, True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if a is not None)
    assert torch.equal(pointwise.product_backward_of_x(dy, weight, ""), expected[0])
    assert torch.equal(pointwise.product_backward_of_weight(dy, x.detach(), weight.detach(), ""), expected[1])


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("how", ["product", "convolution", "narrow product"])
def test_its_backward_by_hand(monkeypatch: pytest.MonkeyPatch, how: str, needs: tuple[bool, bool]) -> None:
    """Every way of computing it, on the CPU, whichever device takes it."""
    monkeypatch.setattr(pointwise, "_how", lambda x, weight: how)
    x, weight = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(4, 6, 1, 1, requires_grad=True)
    dy = torch.randn(2, 4, 5, 7)
    expected = torch.autograd.grad(F.conv2d(x, weight), (x, weight), dy)
    found = pointwise_conv_backward(dy, x.detach(), weight.detach(), needs)
    for got, gold, need in zip(found, expected, needs, strict=True):
        assert (got is not None) == need
        if got is not None:
            torch.testing.assert_close(got, gold)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_narrow_product_of_a_gpu(dtype: torch.dtype) -> None:
    """Computed on the CPU here: against the same numbers in float64, to half an ulp of the sum's magnitude."""
    x = torch.randn(3, 6, 35).to(dtype).requires_grad_()
    weight = torch.randn(4, 6, requires_grad=True)
    dy = torch.randn(3, 4, 35).to(dtype)
    y = _NarrowProduct.apply(x, weight)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    assert (y.dtype, dx.dtype, dweight.dtype) == (dtype, dtype, torch.float32)
    wide_x, wide_weight, wide_dy = x.double(), weight.to(dtype).double(), dy.double()
    eps = torch.finfo(dtype).eps
    for got, gold, terms in (
        (y, wide_weight @ wide_x, wide_weight.abs() @ wide_x.abs()),
        (dx, wide_weight.T @ wide_dy, wide_weight.abs().T @ wide_dy.abs()),
        (dweight, (wide_dy @ wide_x.mT).sum(0), (wide_dy.abs() @ wide_x.abs().mT).sum(0)),
    ):
        assert ((got.double() - gold).abs() <= eps * terms).all()


def test_it_has_no_second_derivative_and_says_so() -> None:
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(_NarrowProduct.apply(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_it_compiles_whole() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(5, 3, requires_grad=True)
    compiled = torch.compile(_NarrowProduct.apply, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(x, weight).sum(), (x, weight)),
        torch.autograd.grad(_NarrowProduct.apply(x, weight).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
