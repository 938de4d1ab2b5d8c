"""The contrastive losses give vectors unit length, in every dtype and at every scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cpl.losses import InfoNCELoss, NTXentLoss, SupConLoss
from cpl.losses.unit import unit_vectors

LABELS = torch.tensor([0, 1, 0, 1])
LOSSES = {
    "InfoNCELoss": lambda x, y: InfoNCELoss()(x, y),
    "symmetric": lambda x, y: InfoNCELoss(symmetric=True)(x, y),
    "queue": lambda x, y: InfoNCELoss()(x, y, queue=y.detach().flip(1)),
    "NTXentLoss": lambda x, y: NTXentLoss()(x, y),
    "SupConLoss": lambda x, y: SupConLoss()(x, LABELS) + SupConLoss()(y, LABELS),
    "SupConLoss, ref": lambda x, y: SupConLoss()(x, LABELS, y, LABELS),
}
HALVES = [torch.float16, torch.bfloat16]


def pair(scale: float = 1.0, zero_row: bool = False) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 9, generator=rng, dtype=torch.float64).clamp(-2, 2) * scale for _ in range(2))
    if zero_row:
        x[1] = 0
    return x, y


def run(loss: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = LOSSES[loss](x, y)
    value.backward()
    assert x.grad is not None
    assert y.grad is not None
    return value.detach(), x.grad, y.grad


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_a_row_of_zeros_gives_a_finite_loss_and_gets_no_gradient(loss, dtype):
    x, y = (z.to(dtype) for z in pair(zero_row=True))
    value, dx, dy = run(loss, x, y)
    exact, exact_dx, _ = run(loss, x.double(), y.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    assert dx.isfinite().all()
    assert dy.isfinite().all()
    assert not dx[1].any()
    assert dx[0].any()
    assert not exact_dx[1].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 9000.0])  # float16's squares underflow, fit, overflow
def test_sixteen_bits_lose_nothing_but_what_the_input_lost(loss, dtype, scale):
    x, y = (z.to(dtype) for z in pair(scale))
    value, *gradients = run(loss, x, y)
    exact, *wanted = run(loss, x.double(), y.double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        # The gradient's own rounding to 16 bits, where it underflows to half its smallest step; and float32's.
        info = torch.finfo(dtype)
        step = info.smallest_normal * info.eps
        torch.testing.assert_close(
            gradient.double(), right, rtol=info.eps / 2, atol=step / 2 + 1e-5 * float(right.abs().max())
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e-12, 1e20, 1e30, 1e38])
def test_no_scale_of_the_vectors_changes_the_loss_in_float32(loss, scale):
    x, y = pair()
    value, dx, dy = run(loss, (x * scale).float(), (y * scale).float())
    exact, *wanted = run(loss, x, y)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
    for gradient, right in zip((dx, dy), wanted, strict=True):
        # At 1e38 the gradient itself lies below float32's normal numbers: it keeps fewer digits there.
        step = torch.finfo(torch.float32).tiny * 2**-23 * scale
        torch.testing.assert_close(
            gradient.double() * scale, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()) + step
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_norm_in_float32(loss, dtype):
    x, y = (z.to(torch.float16).float() for z in pair(9000.0, zero_row=True))
    with torch.autocast("cpu", dtype):
        value, dx, _ = run(loss, x, y)
        halves, *_ = run(loss, x.to(torch.float16), y.to(torch.float16))
    exact, *_ = run(loss, x.double(), y.double())
    assert value.dtype == torch.float32
    # The products see 16-bit vectors: 2^-9 of each cosine at most, over a temperature of 0.07.
    torch.testing.assert_close(value.double(), exact, rtol=0.03, atol=0.03)
    torch.testing.assert_close(halves, value)
    assert dx.isfinite().all()
    assert not dx[1].any()


def test_nan_and_infinity_are_not_hidden():
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [3.0, 4.0]])
    unit = unit_vectors("x", x)
    assert unit[:2].isnan().all()
    torch.testing.assert_close(unit[2], torch.tensor([0.6, 0.8]))


def test_the_gradient_of_unit_vectors_is_right():
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unit_vectors("x", x), x)
    assert torch.autograd.gradgradcheck(lambda x: unit_vectors("x", x), x)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_not_floating_is_refused(loss):
    x = torch.ones(4, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="must be float32, bfloat16, float16 or float64, got torch.int64"):
        LOSSES[loss](x, x)
    with pytest.raises(ValueError, match="at least one feature"):
        LOSSES[loss](torch.ones(4, 0), torch.ones(4, 0))
