"""Depthwise convolutions by themselves: wherever one stands in a network that no block around it has taken already."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cpl.interop.structure import DEPTHWISE_SIZES, Block, Layout, computes_as_torch, describe, is_depthwise
from cpl_kernels import dwconv


def _why_not(module: Block) -> str | None:
    if (
        not isinstance(module, nn.Conv2d)
        or not module.groups == module.in_channels == module.out_channels > 1
    ):
        return ""
    if not computes_as_torch(module):
        return f"its class, {type(module).__name__}, has a forward of its own"
    if not is_depthwise(module):
        sizes = ", ".join(f"{size}x{size}" for size in DEPTHWISE_SIZES)
        return f"it is {describe(module)}, not {sizes} with stride 1 and zero padding of the same size"
    return None


def _forward(module: Block, x: Tensor) -> Tensor | None:
    # Asked at every call: a stride or a padding_mode may be changed after a patch.
    if not is_depthwise(module) or _convolved_as_it_lies(module, x):
        return None
    return dwconv(x, module.weight, module.bias)


def _convolved_as_it_lies(module: Block, x: Tensor) -> bool:
    """Whether torch's convolution walks x where our kernel would copy it, and is faster for that: 3x3 over
    channels-last images on a CPU, such as tokens that were made an image (benchmarks/results/cpu_dwconv.md). A
    compiler decides by itself."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and module.kernel_size == (3, 3)
        and x.stride(1) == 1  # of several channels; is_contiguous(channels_last) is refused under vmap
        and not x.is_contiguous()
    )


DEPTHWISE = Layout("depthwise convolution", _why_not, lambda m: (m.in_channels,), _forward, certain=True)
