"""aggregate_prompts compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# Both wait for memory, so that half of the warps should be there to wait. Resized, the backward holds the
# positions and weights of both axes for each of its elements; ptxas puts 8 bytes of it on the stack to make
# room for a seventh program (sm_90, 72 registers), 16 for a sixth (sm_80, 80 registers).
TRITON_LIMITS = {"forward_kernel": Limit(warps=24), "backward_kernel": Limit(warps=24, spilled=16)}

# Four blocks of 256 threads on a multiprocessor, to wait for memory in turn; of sum_planes' blocks, a warp each, all 32
# that it holds.
CUDA_LIMITS = {"forward": 64, "backward": 64, "sum_planes": 64}

# (B, N, k, C, S, size): the model's three levels, resized by 1.5 and as they are, and odd sizes.
CALLS = {
    "level 1, resized": (8, 5, 1, 64, 64, 96),
    "level 1": (8, 5, 1, 64, 64, 64),
    "level 2": (8, 5, 2, 128, 32, 32),
    "level 3, resized": (8, 5, 1, 320, 16, 24),
    "many prompts": (32, 64, 4, 64, 64, 64),
    "odd": (3, 7, 3, 5, 9, 13),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    batch: int, count: int, chosen: int, channels: int, side: int, size: int, dtype: torch.dtype
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        weights = torch.empty(batch, chosen, device="meta")
        indices = torch.empty(batch, chosen, dtype=torch.int64, device="meta")
        prompts = torch.empty(count, channels, side, side, dtype=dtype, device="meta")
        y = kernels.forward(weights, indices, prompts, size, size)
        return kernels.backward(y, weights, indices, prompts, True, True)

    return run


TRITON_CALLS = {
    f"{name}-{str(dtype)[6:]}": _call(*sizes, dtype) for dtype in DTYPES for name, sizes in CALLS.items()
}
