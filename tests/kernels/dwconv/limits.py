"""dwconv compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# Four warps a program; a thread has two elements of a row, and their sums for eight taps at the most.
TRITON_LIMITS = {"convolve_kernel": Limit(warps=16), "sum_taps_kernel": Limit(warps=16)}

# Of 64 threads; registers for ten and more warps on a scheduler of sm_90. fp64 takes twice as many: in convolve and
# sum_taps, which hold 49 taps or their sums, 142 and 164, and 80 and 102 for all others.
CUDA_LIMITS = {"forward": 64, "backward": 104, "convolve": 144, "sum_taps": 168, "reduce_strips": 56}

SHAPES = {
    (8, 144, 128, 128): "the model's first level",
    (8, 1152, 16, 16): "its fourth: a block of several channels",
    (2, 6, 31, 37): "odd sizes: no stride is divisible by 16",
    (3, 2, 5, 1): "one column",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(shape: tuple[int, ...], dtype: torch.dtype, kernel: int) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        x = torch.empty(shape, dtype=dtype, device="meta")
        weight = torch.empty(shape[1], 1, kernel, kernel, device="meta")
        y = kernels.forward(x, weight, torch.empty(shape[1], device="meta") if kernel > 3 else None)
        return kernels.backward(y, x, weight, None)

    return run


# The largest filter first, as the short run compiles that alone.
TRITON_CALLS = {
    f"{'x'.join(map(str, shape))}-{str(dtype)[6:]}-{kernel}x{kernel}": _call(shape, dtype, kernel)
    for kernel in (7, 5, 3)
    for shape in SHAPES
    for dtype in DTYPES
}
