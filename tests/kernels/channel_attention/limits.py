"""channel_attention compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# The products and their application have eight warps a program and keep a tile of results and its operands in
# registers: two programs on a multiprocessor in most calls, one at least (gfx942, and bf16 in three parts or fp16 on
# sm_80 and sm_120). Where all but a few registers fit, ptxas chooses to spill those in one call of eight (up to 32
# bytes of stack; gfx942's forward seven registers): once a program, not once a step. The small kernels have four warps
# and run once a head.
TRITON_LIMITS = {
    "products_kernel": Limit(warps=8, spilled=32),
    "forward_kernel": Limit(warps=8, spilled=8),
    "attention_kernel": Limit(warps=8),
    "backward_kernel": Limit(warps=8, spilled=32),
    "apply_kernel": Limit(warps=8, spilled=32),
}

# On the tensor cores: eight warps with a tile of 48 x 48 sums each and all that they read of a chunk take all
# registers of a multiprocessor, as does `apply_mma` where pixels are read one by one; else its launch bounds say 128,
# for two blocks of eight warps, as there are in fp64. The small kernels have 128 threads.
CUDA_LIMITS = {
    "products_mma": 255,
    "apply_mma": 255,
    "products": 128,
    "apply": 128,
    "forward_rows": 168,
    "backward_rows": 80,
    "backward_columns": 64,
}

SHAPES = {
    ((8, 3 * 48, 128, 128), 1): "the model's first level",
    ((8, 3 * 96, 64, 64), 2): "its second",
    ((8, 3 * 384, 16, 16), 8): "its fourth",
    ((8, 3 * 96, 128, 128), 1): "its last: 96 channels a head",
    ((8, 3 * 704, 16, 16), 4): "its widest: 176 channels a head",
    ((8, 3 * 16, 128, 128), 1): "the tiny model's first: the smallest tile",
    ((2, 3 * 33, 31, 37), 3): "odd sizes: no stride is divisible by 16",
    ((1, 3 * 1024, 16, 16), 1): "the most channels of a head that are served",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _call(
    shape: tuple[int, ...], heads: int, dtype: torch.dtype, last: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        layout = torch.channels_last if last else torch.contiguous_format
        qkv = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout)
        temperature = torch.empty(heads, 1, 1, device="meta")
        y, *statistics = kernels.forward(qkv, temperature)
        return kernels.backward(y, qkv, temperature, *statistics)

    return run


TRITON_CALLS = {
    f"{'x'.join(map(str, shape))}-{heads}-{str(dtype)[6:]}-{'last' if last else 'planar'}": _call(
        shape, heads, dtype, last
    )
    for shape, heads in SHAPES
    for dtype in DTYPES
    for last in (False, True)
}
