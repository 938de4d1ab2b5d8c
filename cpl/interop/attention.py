"""Attention between channels, and the gated feed-forward network.

Our kernel is the core of an attention: normalise, multiply, softmax, apply. The convolutions around it are ours where
they are plain depthwise or 1x1 ones; elsewhere their own code runs.

Sources of the layouts: Restormer, arXiv 2111.09881 (PromptIR, AdaIR and MoCE-IR keep its names); AdaIR, arXiv
2403.14614, and MoCE-IR, arXiv 2411.18466 (queries of one feature map, keys and values of another).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cpl.interop.structure import (
    Block,
    Layout,
    apply,
    computes_as_torch,
    convolve,
    is_depthwise,
    is_free,
    is_plain,
    why_no_conv,
)
from cpl_kernels import channel_attention, checks, feed_forward_half, gated_dwconv


def why_no_temperature(module: Block) -> str | None:
    temperature = getattr(module, "temperature", None)
    if not isinstance(temperature, Tensor):
        return ""
    if temperature.dim() != 3 or temperature.shape[1:] != (1, 1):
        return f"its temperature is {tuple(temperature.shape)}, not [heads, 1, 1]"
    return None


def is_cross(module: Block) -> bool:
    return hasattr(module, "q") and hasattr(module, "kv")


def features(part: Block) -> tuple[int, int]:
    """Channels that a convolution, or a linear layer, takes and gives."""
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features
    return part.in_channels, part.out_channels


def why_no_maps(module: Block, **counts: int) -> str | None:
    """What keeps convolutions from giving so many times the channels that ``project_out`` takes."""
    for name in (*counts, "project_out"):
        if not isinstance(getattr(module, name, None), nn.Conv2d | nn.Linear):
            return f"it has no convolution {name}"
    channels = features(module.project_out)[0]
    for name, count in counts.items():
        given = features(getattr(module, name))[1]
        if given != count * channels:
            return f"{name} gives {given} channels, not {count} times the {channels} that project_out takes"
    return None


def maps(module: Block, name: str, x: Tensor) -> Tensor:
    """A convolution, and the depthwise one behind it if there is one."""
    y = convolve(getattr(module, name), x)
    depthwise = getattr(module, f"{name}_dwconv", None)
    return y if depthwise is None else convolve(depthwise, y)


def depthwise_parts(*names: str) -> Callable[[Block], list[nn.Module]]:
    """Those of the parts that ours computes instead of their own code."""

    def found(module: Block) -> list[nn.Module]:
        parts = [getattr(module, name, None) for name in names]
        return [p for p in parts if p is not None and computes_as_torch(p) and is_depthwise(p)]

    return found


# -- of one map


def _why_not(module: Block) -> str | None:
    if is_cross(module):
        return ""
    why = why_no_temperature(module)
    return why if why is not None else why_no_maps(module, qkv=3)


def _forward(module: Block, x: Tensor) -> Tensor | None:
    if not is_free(module, ("qkv", "qkv_dwconv")):
        return None
    return convolve(module.project_out, channel_attention(maps(module, "qkv", x), module.temperature))


# -- of two


def _why_not_cross(module: Block) -> str | None:
    if not is_cross(module):
        return ""
    why = why_no_temperature(module)
    return why if why is not None else why_no_maps(module, q=1, kv=2)


def _forward_cross(module: Block, x: Tensor, y: Tensor) -> Tensor | None:
    """q of x, k and v of y. The kernel reads them as one tensor; that copy costs less than the kernel saves."""
    (b, _, *of_x), (other, _, *of_y) = checks.sizes(x), checks.sizes(y)
    if [b, *of_x] != [other, *of_y] or not is_free(module, ("q", "kv", "q_dwconv", "kv_dwconv")):
        return None
    qkv = torch.cat((maps(module, "q", x), maps(module, "kv", y)), 1)
    return convolve(module.project_out, channel_attention(qkv, module.temperature))


# -- the feed-forward network


def _why_not_feed_forward(module: Block) -> str | None:
    if not (hasattr(module, "project_in") and hasattr(module, "dwconv")):
        return ""
    return (
        why_no_conv(module, "project_in", 1, depthwise=False)
        or why_no_conv(module, "dwconv", 3, depthwise=True)
        or why_no_conv(module, "project_out", 1, depthwise=False)
    )


def _forward_feed_forward(module: Block, x: Tensor) -> Tensor | None:
    first, depthwise, last = module.project_in, module.dwconv, module.project_out
    if not is_plain(depthwise):
        return None
    if x.dim() == 4 and is_plain(first) and is_plain(last):  # one node, which does not keep the gate's output
        return feed_forward_half(
            x, None, None, first.weight, depthwise.weight, last.weight,
            in_bias=first.bias, dw_bias=depthwise.bias, out_bias=last.bias, residual=False,
        )  # fmt: skip
    return apply(last, gated_dwconv(apply(first, x), depthwise.weight, depthwise.bias))


ATTENTION = Layout(
    "channel attention",
    _why_not,
    lambda m: features(m.qkv)[:1],
    _forward,
    covers=depthwise_parts("qkv", "qkv_dwconv"),
)
CROSS_ATTENTION = Layout(
    "cross attention",
    _why_not_cross,
    lambda m: (features(m.q)[0], features(m.kv)[0]),
    _forward_cross,
    covers=depthwise_parts("q", "kv", "q_dwconv", "kv_dwconv"),
)
FEED_FORWARD = Layout(
    "gated feed-forward",
    _why_not_feed_forward,
    lambda m: (m.project_in.in_channels,),
    _forward_feed_forward,
    covers=depthwise_parts("dwconv"),
)
