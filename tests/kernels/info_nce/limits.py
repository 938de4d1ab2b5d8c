"""info_nce compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# Most programs have 8 warps: on NVIDIA another one loads while it computes. Where two programs would fit but for a few
# registers, the compiler gives them away: a thread spills two to five (8 to 20 bytes). On sm_90, where blocks in 16
# bits are of 128 x 128 pairs, a thread has 64 products, and with labels both ways it spills up to 36 registers of what
# it makes of them. On gfx942 the gradient of an odd number of vectors with themselves spills 33. Either is once a
# block, outside the loop over features.
TRITON_LIMITS = {
    "forward_kernel": Limit(
        warps=8,
        spilled=8,
        on={
            90: Limit(warps=8, spilled=112),
            120: Limit(warps=8, spilled=16),
            "gfx942": Limit(warps=8, spilled=22),
        },
    ),
    "gradient_kernel": Limit(
        warps=8, spilled=8, on={90: Limit(warps=8, spilled=144), "gfx942": Limit(warps=8, spilled=33)}
    ),
    "merge_kernel": Limit(warps=16),
}

# Two blocks of 256 threads on a multiprocessor: a thread's 16 logits, their gradients and what tells positives apart
# take 64 to 96 registers, in fp64 up to 128.
CUDA_LIMITS = {"tile_sums": 128, "tile_gradient": 128, "add_parts": 64, "add_scale": 40}

SIZES = {
    (4096, 4096, 128): "CLIP",
    (1000, 1003, 33): "odd sizes: no stride is divisible by 16",
    (2048, 2048, 1024): "the most features that are usual",
}
DTYPES = (torch.float32, torch.bfloat16)  # the two sizes: float16 is multiplied as bfloat16 is


def _call(size: tuple[int, int, int], dtype: torch.dtype, kind: str) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        queries, keys, features = size
        query, key = (torch.empty(n, features, dtype=dtype, device="meta") for n in (queries, keys))
        temperature = torch.empty((), device="meta")
        labels = [torch.empty(n, dtype=torch.int64, device="meta") for n in (queries, keys)]
        symmetric, ignore = kind != "one direction", -100
        inputs = {
            "one direction": (query, key, None, None, None, None),
            "symmetric": (query, key, None, None, *labels),
            "SupCon": (query, None, key, None, labels[0], labels[0]),
        }[kind]
        outputs = kernels.forward(*inputs, temperature, symmetric, ignore, "mean")
        return kernels.backward(
            outputs[0], *inputs, temperature, *outputs[1:], symmetric, ignore, "mean", True, True, True
        )

    return run


TRITON_CALLS = {
    f"{'x'.join(map(str, size))}-{str(dtype)[6:]}-{kind}": _call(size, dtype, kind)
    for size in SIZES
    for dtype in DTYPES
    for kind in ("symmetric", "one direction", "SupCon")
}
