"""log_l1: each image by its own error."""

from __future__ import annotations

import math

import pytest
import torch

from cpl.losses import log_l1


def test_it_is_the_mean_of_the_images_logarithms() -> None:
    target = torch.zeros(2, 3, 4, 4)
    restored = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.05)])
    expected = (math.log(0.501) + math.log(0.051)) / 2
    assert log_l1(restored, target).item() == pytest.approx(expected, rel=1e-6)


def test_a_small_error_asks_for_as_much_as_a_large_one() -> None:
    """In the mean of all errors every pixel of either image has the same gradient."""
    restored = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.05)]).requires_grad_()
    log_l1(restored, torch.zeros(2, 3, 4, 4), eps=0.0).backward()
    assert restored.grad is not None
    large, small = (float((image * grad).sum()) for image, grad in zip(restored, restored.grad, strict=True))
    assert large == pytest.approx(small) == pytest.approx(0.5)


def test_a_right_image_has_a_finite_gradient_and_bf16_sums_are_wide() -> None:
    exact = torch.rand(1, 3, 4, 4).requires_grad_()
    log_l1(exact, exact.detach()).backward()
    assert exact.grad is not None
    assert exact.grad.isfinite().all()
    half = torch.full((1, 3, 64, 64), 0.5).bfloat16()
    assert log_l1(half, torch.zeros(1, 3, 64, 64)).dtype == torch.float32
    assert log_l1(half, torch.zeros(1, 3, 64, 64)).item() == pytest.approx(math.log(0.501))
