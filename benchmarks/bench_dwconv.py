"""dwconv against torch's depthwise convolution. Run: make bench-dwconv."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cpl_kernels
from benchmarks import harness, rows
from cpl_kernels.dwconv import reference


def ours(backend: str) -> harness.Function:
    return lambda x, w: cpl_kernels.dwconv(x, w, backend=backend)


def definition(x: Tensor, weight: Tensor) -> Tensor:
    return reference.dwconv(x, weight, None)


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def problem(*shape: int, kernel: int = 3, channels_last: bool = False) -> harness.Problem:
    """``shape``: of the image; that of the kernel stands behind it in the tables, where it is not 3x3."""

    def make(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        memory = torch.channels_last if channels_last else torch.contiguous_format
        x, dy = (torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory) for _ in range(2))
        weight = torch.randn(shape[1], 1, kernel, kernel, device=device, dtype=dtype, requires_grad=True)
        return [x.requires_grad_(), weight], dy

    image = torch.Size(shape).numel()
    name = shape if kernel == 3 else (*shape, kernel, kernel)
    # Read and write; the backward reads x and dy and writes dx.
    floors = {"forward": 2 * image, "forward+backward": 5 * image}
    return harness.Problem(name, make, floors, 2 * image, note="channels-last" if channels_last else "")


# Three times C = 48, 96, 192, 384: the full model's four levels.
LEVELS = ((144, 128, 128), (288, 64, 64), (576, 32, 32), (1152, 16, 16))
# Other networks' maps: few and many channels, small and large maps, one image and a batch, and no power of two.
OTHERS = (
    (1, 64, 128, 128), (1, 128, 64, 64), (4, 128, 32, 32), (4, 256, 16, 16), (1, 64, 8, 8), (1, 512, 8, 8),
    (8, 512, 8, 8), (1, 127, 63, 65), (2, 65, 15, 17), (8, 127, 7, 9),
)  # fmt: skip
LARGER = tuple(
    problem(*shape, kernel=kernel)
    for kernel in (5, 7)
    for shape in ((1, 128, 64, 64), (1, 64, 128, 128), (4, 256, 16, 16), (1, 512, 8, 8), (1, 127, 63, 65))
)

# torch's own layout for convolutions, in which tokens lie too.
CHANNELS_LAST = tuple(
    problem(*shape, channels_last=True) for shape in ((1, 128, 64, 64), (1, 512, 16, 16), (4, 64, 32, 32))
)

BENCH = harness.Bench(
    op="dwconv",
    problems={
        "cpu": (
            *(problem(1, *level) for level in LEVELS),
            *(problem(*shape) for shape in OTHERS),
            *LARGER,
            *CHANNELS_LAST,
        ),
        "cuda": (
            *(problem(8, *level) for level in LEVELS),
            *(problem(8, 128, 64, 64, kernel=kernel) for kernel in (5, 7)),
        ),
    },
    implementations={
        **harness.ours(ours),
        "reference eager": lambda: definition,
        "conv2d": lambda: convolution,
        "torch.compile of conv2d": harness.compiled(convolution),
    },
    definition=definition,
    tolerance=2e-4,
    sum_tolerance=2e-2,  # dweight sums 16384 terms
)


@pytest.mark.benchmark(timer=rows.CLOCK)
def test_dwconv(benchmark: Any, row: rows.Row) -> None:
    rows.measure(benchmark, row)
