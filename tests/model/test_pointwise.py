"""The 1x1 convolution as a matrix product is torch's convolution, whatever the layout and size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cpl.nn import PointwiseConv

# 1 pixel; one row; odd sides; a batch of none
SHAPES = [(2, 5, 7, 9), (1, 3, 1, 1), (3, 4, 1, 6), (0, 4, 5, 5)]


def _pair(channels: int, dtype: torch.dtype = torch.float64) -> tuple[PointwiseConv, nn.Conv2d]:
    torch.manual_seed(0)
    ours, theirs = PointwiseConv(channels, 6).to(dtype), nn.Conv2d(channels, 6, 1, bias=False).to(dtype)
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes
    return ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_the_convolutions(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    ours, theirs = _pair(shape[1])
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=memory_format)
    grad = torch.randn(shape[0], 6, *shape[2:], dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(leaf)
        y.backward(grad)
        results.append((y, leaf.grad, module.weight.grad))
    for got, expected in zip(*results, strict=True):
        # Sums of at most 5 products (63 pixels for the weight) of numbers near 1, in another order.
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_pixels_next_to_each_other_take_the_product_and_channels_last_the_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, _ = _pair(4)
    taken = []
    monkeypatch.setattr(torch, "bmm", lambda a, b, bmm=torch.bmm: (taken.append("product"), bmm(a, b))[1])
    monkeypatch.setattr(F, "conv2d", lambda *a, conv=F.conv2d: (taken.append("convolution"), conv(*a))[1])
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    y = ours(x)
    assert ours(x.contiguous(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    assert y.is_contiguous()
    assert taken == ["product", "convolution"]


def test_a_wrong_number_of_channels_is_an_error() -> None:
    ours, _ = _pair(4)
    with pytest.raises(RuntimeError):
        ours(torch.randn(2, 5, 3, 3, dtype=torch.float64))


def test_compiles_whole() -> None:
    ours, theirs = _pair(4)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs(x), rtol=0, atol=1e-13)
