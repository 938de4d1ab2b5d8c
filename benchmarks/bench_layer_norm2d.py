"""layer_norm2d against the ways it is usually written. Run: make bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from cpl_kernels.layer_norm2d import reference

Function = Callable[[Tensor, Tensor, Tensor], Tensor]
EPS = 1e-5
SHAPES = [(8, 48, 128, 128), (2, 96, 256, 256)]


def chain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The usual LayerNorm2d of restoration networks: mean, var, sub, div, mul, add on NCHW."""
    mean = x.mean(1, keepdim=True)
    variance = x.var(1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + EPS) * weight[:, None, None] + bias[:, None, None]


def permuted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.layer_norm on an NHWC copy, and back."""
    y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS)
    return y.permute(0, 3, 1, 2).contiguous()


def definition(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.layer_norm2d(x, weight, bias, EPS, True)


IMPLEMENTATIONS: dict[str, Callable[[], Function]] = {
    "ours (native)": lambda: lambda x, w, b: cpl_kernels.layer_norm2d(x, w, b, EPS, backend="native"),
    "reference eager": lambda: definition,
    "torch.compile of the reference": lambda: torch.compile(definition),
    "usual chain": lambda: chain,
    "F.layer_norm, permuted": lambda: permuted,
}


@pytest.mark.parametrize("passes", ["forward", "forward+backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_layer_norm2d(
    benchmark: Any, copy_bandwidth: Callable[[int], float], name: str, shape: tuple[int, ...], passes: str
) -> None:
    torch.manual_seed(0)
    function = IMPLEMENTATIONS[name]()
    x = torch.randn(shape, requires_grad=True)
    weight, bias = (torch.randn(shape[1], requires_grad=True) for _ in range(2))
    dy = torch.randn(shape)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x, weight, bias)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, weight, bias), (x, weight, bias), dy)

    run = forward if passes == "forward" else both
    torch.testing.assert_close(forward(), chain(x, weight, bias), rtol=1e-4, atol=1e-4)  # before any timing
    expected = torch.autograd.grad(definition(x, weight, bias), (x, weight, bias), dy)
    torch.testing.assert_close(both(), expected, rtol=1e-3, atol=2e-2)  # dweight sums 131072 terms

    benchmark.group = f"layer_norm2d {'x'.join(map(str, shape))} float32 {passes}"
    benchmark.name = name
    benchmark.pedantic(run, rounds=15, warmup_rounds=3)
    floor = x.nbytes * (2 if passes == "forward" else 5)  # read + write; backward reads two, writes one
    rate = floor / benchmark.stats.stats.median / 1e9
    benchmark.extra_info.update(
        floor_bytes=floor, gb_per_s=rate, share_of_copy_bandwidth=rate / copy_bandwidth(2 * x.nbytes)
    )
