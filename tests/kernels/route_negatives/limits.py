"""route_negatives compiled without a GPU: for which calls, and what its kernel may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

TRITON_LIMITS = {"forward_kernel": Limit(warps=4)}  # as route_topk's

# As route_topk's, but for sm_120, which takes 66 for fp64 and holds no more than 24 blocks.
CUDA_LIMITS = {"forward": 72}

# (B, N, k)
CALLS = {"model": (8, 5, 1), "many": (32, 64, 4), "most": (2, 4096, 8)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    batch: int, prompts: int, k: int, dtype: torch.dtype, positive: bool, renormalize: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        logits = torch.empty(batch, prompts, dtype=dtype, device="meta")
        seed = torch.empty((), dtype=torch.int64, device="meta")
        return kernels.forward(logits, seed, k, 4, positive, renormalize)

    return run


TRITON_CALLS = {
    f"{name}-{str(dtype)[6:]}-{'positive' if positive else 'own'}-{'topk' if renormalize else 'none'}": _call(
        *sizes, dtype, positive, renormalize
    )
    for dtype in DTYPES
    for name, sizes in CALLS.items()
    for positive in (False, True)
    for renormalize in (False, True)
}
