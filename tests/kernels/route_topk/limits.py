"""route_topk compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# A launch is a handful of warps and over at once; what counts is that nothing spills, but for the 8 bytes that ptxas
# puts on the stack to fit 16 warps three times into the registers (sm_90, 40 registers).
TRITON_LIMITS = {"forward_kernel": Limit(warps=4), "backward_kernel": Limit(warps=4, spilled=8)}

# A block is a warp, and a multiprocessor holds 32 of those at the most.
CUDA_LIMITS = {"forward": 64, "backward": 64}

# (B, N, k)
CALLS = {"model": (8, 5, 1), "many": (32, 64, 4), "most": (2, 4096, 8)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    batch: int, prompts: int, k: int, dtype: torch.dtype, renormalize: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        logits = torch.empty(batch, prompts, dtype=dtype, device="meta")
        weights, indices = kernels.forward(logits, k, renormalize)
        return kernels.backward(weights, logits, indices, renormalize)

    return run


TRITON_CALLS = {
    f"{name}-{str(dtype)[6:]}-{'topk' if renormalize else 'none'}": _call(*sizes, dtype, renormalize)
    for dtype in DTYPES
    for name, sizes in CALLS.items()
    for renormalize in (False, True)
}
