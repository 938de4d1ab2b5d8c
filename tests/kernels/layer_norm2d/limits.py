"""layer_norm2d compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# A program has 16 warps. Forward, a second one loads while the first one sums. The backward holds two images
# and the sums of the parameters, and would have to spill for that; where all but one register fits, ptxas
# chooses to (8 bytes of stack: on sm_80, in 16-bit backwards without mean).
TRITON_LIMITS = {"forward_kernel": Limit(warps=32), "backward_kernel": Limit(warps=16, spilled=8)}

# Tiles: two blocks of 10 warps at the most channels a thread, of fp32 forward and of 16 bits backward.
# The kernels for all else: forward, five blocks of 256 threads on a multiprocessor; backward, its four persistent ones.
# reduce_rows has 512 threads and walks a few rows once.
CUDA_LIMITS = {
    "forward_tile": 96,
    "backward_tile": 96,
    "forward_planar": 48,
    "forward_last": 48,
    "backward_planar": 64,
    "backward_last": 64,
    "reduce_rows": 40,
}

SHAPES = {
    (8, 48, 128, 128): "the model's first level",
    (8, 96, 64, 64): "its second",
    (8, 160, 64, 64): "after the first prompt: a tile of 256 channels",
    (8, 384, 16, 16): "its fourth",
    (8, 704, 16, 16): "its widest: a tile of 1024 channels",
    (8, 16, 128, 128): "the tiny model's first level: the tile is as wide as it gets",
    (2, 3, 31, 37): "odd sizes: no stride is divisible by 16",
    (2, 1, 33, 1): "one channel",
    (2, 7, 1, 1): "one pixel: the tile is one pixel wide",
    (1, 2048, 16, 16): "the most channels that are served: one pixel a tile backward",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool, full: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        weight = torch.empty(shape[1], device="meta")
        y, mean, rstd = kernels.forward(x, weight, weight if full else None, 1e-5, full)
        return kernels.backward(y, x, weight, mean, rstd, full)

    return run


# Mean and bias both, as the model has them, or neither, as BiasFree norms: the extremes of what is kept.
TRITON_CALLS = {
    f"{'x'.join(map(str, shape))}-{str(dtype)[6:]}-{'last' if last else 'planar'}-"
    f"{'full' if full else 'bare'}": _call(shape, dtype, last, full)
    for shape in SHAPES
    for dtype in DTYPES
    for last in (False, True)
    for full in (True, False)
}
