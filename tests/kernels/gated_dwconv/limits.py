"""gated_dwconv compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# Four warps a program; backward a thread holds 20 sums and 18 gradients beside what it convolves with. On gfx942 that
# is, in fp16 at odd sizes, one register more than three programs would leave it.
TRITON_LIMITS = {
    "forward_kernel": Limit(warps=16),
    "backward_kernel": Limit(warps=12, on={"gfx942": Limit(warps=8)}),
}

# Of 64 threads. A lane of the backward holds, for four columns of both planes, three rows of x, two of each
# convolution that are not complete, the taps and 20 sums. 168 are three warps for each scheduler; fp64, one column a
# lane, takes more.
CUDA_LIMITS = {"forward": 112, "backward": 184, "reduce_strips": 56}

SHAPES = {
    (8, 254, 128, 128): "the model's first level",
    (8, 2042, 16, 16): "its fourth: a block of several channels",
    (2, 6, 31, 37): "odd sizes: no stride is divisible by 16",
    (3, 2, 5, 1): "one column, one pair of channels",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    shape: tuple[int, ...], dtype: torch.dtype, gelu: bool, bias: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        x = torch.empty(shape, dtype=dtype, device="meta")
        weight = torch.empty(shape[1], 1, 3, 3, device="meta")
        b = torch.empty(shape[1], device="meta") if bias else None
        y = kernels.forward(x, weight, b, gelu)
        return kernels.backward(y, x, weight, b, gelu)

    return run


# The model's options and the opposite of both.
TRITON_CALLS = {
    f"{'x'.join(map(str, shape))}-{str(dtype)[6:]}-{'gelu' if gelu else 'none-bias'}": _call(
        shape, dtype, gelu, not gelu
    )
    for shape in SHAPES
    for dtype in DTYPES
    for gelu in (True, False)
}
