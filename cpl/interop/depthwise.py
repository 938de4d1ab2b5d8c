"""Depthwise convolutions by themselves: wherever one stands in a network that no block around it has taken already."""

from __future__ import annotations

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
    return dwconv(x, module.weight, module.bias) if is_depthwise(module) else None


DEPTHWISE = Layout("depthwise convolution", _why_not, lambda m: (m.in_channels,), _forward, certain=True)
