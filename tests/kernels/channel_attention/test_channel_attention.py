"""What is special to channel_attention; tests/kernels/test_parity.py and test_contract.py have the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cpl_kernels
from cpl_kernels.channel_attention import reference
from tests.kernels.channel_attention.spec import SPEC, case, naive

HEADS = next(case for case in SPEC.cases if case.name == "heads")


def test_definition_has_second_derivatives() -> None:
    tiny = case("tiny", "second derivatives by differences", 2, (1, 12, 2, 1))
    inputs = [x.requires_grad_() for x in tiny.inputs(torch.float64).values()]
    assert torch.autograd.gradgradcheck(reference.channel_attention, inputs)


def test_accumulates_in_float32_under_autocast_too() -> None:
    """Autocast is off below the op: a bf16 matmul inside would be off by 2^-9 where fp32 is off by 2^-24."""
    qkv, temperature = SPEC.cases[0].inputs(torch.bfloat16).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, norm, _, cosines = torch.ops.cpl_kernels.channel_attention(qkv, temperature.float(), "reference")
    _, _, _, expected = reference.forward(qkv.double(), temperature.double())
    assert (norm.dtype, cosines.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(cosines.double(), expected, rtol=1e-5, atol=1e-6)


def test_zero_channels_are_no_division_by_zero() -> None:
    """A norm of 0 is clamped: its cosines are 0, so its attention is even."""
    qkv, temperature = HEADS.inputs(torch.float64).values()
    qkv[:, 1] = 0
    qkv[:, 13] = 0
    leaf = qkv.clone().requires_grad_()
    y = cpl_kernels.channel_attention(leaf, temperature)
    expected_leaf = qkv.clone().requires_grad_()
    expected = naive(expected_leaf, temperature)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(leaf.grad, expected_leaf.grad)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_scale_of_q_and_k_does_not_matter(scale: float) -> None:
    qkv, temperature = SPEC.small[0].inputs(torch.float32).values()
    scaled = torch.cat((qkv[:, :8] * scale, qkv[:, 8:]), dim=1)
    torch.testing.assert_close(
        cpl_kernels.channel_attention(scaled, temperature), cpl_kernels.channel_attention(qkv, temperature)
    )


def test_extreme_temperature_stays_finite() -> None:
    qkv, _ = SPEC.small[0].inputs(torch.float32).values()
    leaf, temperature = qkv.requires_grad_(), torch.full((2, 1, 1), 1e4, requires_grad=True)
    y = cpl_kernels.channel_attention(leaf, temperature)
    y.sum().backward()
    assert all(torch.isfinite(t).all() for t in (y, leaf.grad, temperature.grad))


def test_keeps_the_inputs_and_per_head_statistics_only() -> None:
    """What autograd holds beyond qkv itself: norms [B, C] and c x c matrices, not q and k over the pixels."""
    qkv, temperature = torch.randn(2, 24, 32, 32, requires_grad=True), torch.ones(2, 1, 1, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cpl_kernels.channel_attention(qkv, temperature)
    beyond = [t.numel() for t in kept if t.data_ptr() != qkv.data_ptr()]
    assert sum(beyond) == 2 + 2 * (2 * 8) + 2 * 2 * 4 * 4
    assert any(t.data_ptr() == qkv.data_ptr() for t in kept)
