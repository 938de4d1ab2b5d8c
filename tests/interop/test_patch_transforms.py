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
