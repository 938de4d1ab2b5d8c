"""A patched network under torch.func, torch.jit.trace and torch.export: as the network that it was before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cpl
from cpl.nn.block import KEEP
from tests.interop import layouts
from tests.transforms import assert_gradients_of_each_image, assert_same, exported, traced

# test_comparison.py has the whole of it
pytestmark = pytest.mark.usefixtures("brief_comparison")

CHANNELS = 8


def patched(keep: str = "all") -> nn.Module:
    made = layouts.trained(layouts.model()).eval()
    assert cpl.patch(made, keep=keep).patched
    return made


@pytest.mark.parametrize("keep", KEEP)
def test_a_trace_runs_at_any_size(keep: str) -> None:
    made = patched(keep)
    assert_same(traced(made, CHANNELS), made, CHANNELS)


@pytest.mark.parametrize("keep", ["all", pytest.param("input", marks=pytest.mark.slow)])
def test_an_export_runs_at_any_size(keep: str) -> None:
    made = patched(keep)
    assert_same(exported(made, CHANNELS).module(), made, CHANNELS)


@pytest.mark.parametrize("keep", KEEP)
def test_gradients_of_each_image(keep: str) -> None:
    assert_gradients_of_each_image(patched(keep), CHANNELS)


def test_a_jacobian_is_that_of_the_unpatched() -> None:
    made = layouts.trained(layouts.TransformerBlock(4, 2)).double()
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.func.jacrev(made)(x)
    assert cpl.patch(made).patched
    torch.testing.assert_close(torch.func.jacrev(made)(x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_narrow_product_of_a_gpu_has_gradients_of_each_image(
    narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an autograd function of our own there, which torch.func knows nothing of."""
    from cpl.nn import pointwise

    monkeypatch.setattr(pointwise, "_how", lambda x, weight: "narrow product" if narrow else "product")
    x = torch.randn(3, 4, 2, 5).bfloat16()
    weight = torch.randn(6, 4, 1, 1)

    def loss(weight: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        w = weight if narrow else weight.bfloat16()
        return pointwise.pointwise_conv(one[None], w).float().square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    for i in range(3):
        leaf = weight.clone().requires_grad_()
        (alone,) = torch.autograd.grad(loss(leaf, x[i]), [leaf])
        torch.testing.assert_close(each[i], alone, rtol=2e-2, atol=2e-2 * float(alone.abs().max()))
