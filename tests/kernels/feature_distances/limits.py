"""feature_distances compiled without a GPU: for which calls, and what its kernels may take (see triton_aot.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from tests.kernels.triton_aot import Limit

# A program has 8 warps: another two load while one of them computes. The backward with a norm holds the anchor,
# its gradient, an other and its gradient.
TRITON_LIMITS = {"forward_kernel": Limit(warps=24), "backward_kernel": Limit(warps=16)}

SHAPES = {
    (2, 64, 256, 256): "VGG's relu1_2 for images of 256x256",
    (2, 128, 128, 128): "its relu2_2",
    (2, 256, 64, 64): "its relu3_3",
    (2, 3, 31, 37): "odd sizes: no stride is divisible by 16",
    (4, 512): "vectors",
    (1, 2048, 16, 16): "the most channels that are served: a tile is one pixel",
}
DTYPES = (torch.float32, torch.bfloat16)  # the two sizes: float16 is converted as bfloat16 is
OPTIONS = {
    (1, False, False): "CPR's",
    (1, True, False): "the same, normalised",
    (2, True, True): "what holds the most: others' gradient too",
}


def _call(
    shape: tuple[int, ...], dtype: torch.dtype, last: bool, p: int, normalize: bool, need_others: bool
) -> Callable[[ModuleType], object]:
    def run(kernels: ModuleType) -> object:
        anchor = torch.empty(shape, dtype=dtype, device="meta")
        others = torch.empty(4, *shape, dtype=dtype, device="meta")
        if last:
            anchor, others = (x.movedim(-3, -1).contiguous().movedim(-1, -3) for x in (anchor, others))
        dy = kernels.forward(anchor, others, p, normalize)
        return kernels.backward(dy, anchor, others, p, normalize, True, need_others)

    return run


TRITON_CALLS = {
    f"{'x'.join(map(str, shape))}-{str(dtype)[6:]}-{'last' if last else 'planar'}-p{options[0]}"
    f"{'-norm' if options[1] else ''}{'-others' if options[2] else ''}": _call(shape, dtype, last, *options)
    for shape in SHAPES
    for dtype in DTYPES
    for last in ((False, True) if len(shape) == 4 else (False,))
    for options in OPTIONS
}
