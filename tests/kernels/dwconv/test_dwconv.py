"""What is special to dwconv: every small size of map and kernel, and the same bits for every kernel size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

import cpl_kernels
from cpl_kernels import core
from tests.kernels import harness, targets
from tests.kernels.dwconv import spec

KERNELS = (3, 5, 7)


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_small_map(kernel: int) -> None:
    """Whole numbers, whose sums are exact: a column, row or tap that is read from a wrong place shows."""
    rng = torch.Generator().manual_seed(0)
    one = itertools.product((1,), (*range(1, 11), 16, 27), (*range(1, 36), 64, 97))
    several = itertools.product((2, 9, 33), (1, 4, 7, 8, 34), (1, 3, 5, 8, 12, 15))
    for batch, height, width in (*one, *several):
        x, dy = (torch.randint(-4, 5, (batch, 2, height, width), generator=rng).float() for _ in range(2))
        weight = torch.randint(-4, 5, (2, 1, kernel, kernel), generator=rng).float()
        bias = torch.tensor([3.0, -5.0])
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        y = cpl_kernels.dwconv(*leaves, backend="native")
        expected = F.conv2d(*leaves, padding=kernel // 2, groups=2)
        assert torch.equal(y, expected), (batch, height, width)
        for name, got, wanted in zip(
            ("x", "weight", "bias"),
            torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy),
            strict=True,
        ):  # fmt: skip
            assert torch.equal(got, wanted), (name, batch, height, width)


@pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 70, 101), (35, 5, 7, 6)], ids=["bands", "whole planes"])
def test_same_bits_at_any_number_of_threads(kernel: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = spec.case("threads", "planes for three threads", shape, kernel=kernel).inputs(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                harness.run(
                    lambda **a: cpl_kernels.dwconv(**a, backend="native"), inputs, ("y",), tuple(inputs),
                    harness.incoming([inputs["x"]]),
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        harness.assert_same_bits(other, results[0], f"{kernel}x{kernel}")


@targets.on("dwconv")
def test_kernel_sizes_are_told_apart(target: targets.Target) -> None:
    """A 5x5 filter in the middle of a 7x7 one, and a 3x3 one in that, are the same convolution."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 5, (1, 2, 6, 5), generator=rng).float()
    inner = torch.randint(-4, 5, (2, 1, 3, 3), generator=rng).float()
    with target.serving("dwconv"):
        ys = [cpl_kernels.dwconv(x, F.pad(inner, [n] * 4), backend=target.backend) for n in (0, 1, 2)]
    assert torch.equal(ys[0], ys[1])
    assert torch.equal(ys[0], ys[2])


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (4, 4), (9, 9), (11, 11), (3, 5), (1, 7), (0, 0)])
def test_another_kernel_size_names_itself_and_the_remedy(kernel: tuple[int, int]) -> None:
    x, weight = torch.ones(1, 2, 12, 12), torch.ones(2, 1, *kernel)
    with pytest.raises(ValueError, match=r"k one of 3, 5, 7") as error:
        cpl_kernels.dwconv(x, weight)
    assert f"{tuple(weight.shape)}" in str(error.value)
    assert "Use torch.nn.functional.conv2d" in str(error.value)
