"""Attention between channels, and the gated feed-forward network.

Sources of the layouts: Restormer, arXiv 2111.09881 (PromptIR, AdaIR and MoCE-IR keep its names); AdaIR, arXiv
2403.14614, and MoCE-IR, arXiv 2411.18466 (queries of one feature map, keys and values of another).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpl.interop.structure import Block, Layout, apply, is_plain, why_no_conv
from cpl.nn.byproducts import gate_conv
from cpl_kernels import channel_attention, checks, dwconv, gated_dwconv


def _why_no_temperature(module: Block) -> str | None:
    temperature = getattr(module, "temperature", None)
    if not isinstance(temperature, Tensor):
        return ""
    if temperature.dim() != 3 or temperature.shape[1:] != (1, 1):
        return f"its temperature is {tuple(temperature.shape)}, not [heads, 1, 1]"
    return None


def _is_cross(module: Block) -> bool:
    return hasattr(module, "q") and hasattr(module, "kv")


def _why_not(module: Block) -> str | None:
    if _is_cross(module):
        return ""
    why = _why_no_temperature(module)
    return (
        why
        if why is not None
        else why_no_conv(module, "qkv", 1, depthwise=False)
        or why_no_conv(module, "qkv_dwconv", 3, depthwise=True)
        or why_no_conv(module, "project_out", 1, depthwise=False)
    )


def _forward(module: Block, x: Tensor) -> Tensor | None:
    depthwise = module.qkv_dwconv
    if not is_plain(depthwise):
        return None
    qkv = dwconv(apply(module.qkv, x), depthwise.weight, depthwise.bias)
    return apply(module.project_out, channel_attention(qkv, module.temperature))


def _why_not_cross(module: Block) -> str | None:
    if not _is_cross(module):
        return ""
    why = _why_no_temperature(module)
    return (
        why
        if why is not None
        else why_no_conv(module, "q", 1, depthwise=False)
        or why_no_conv(module, "kv", 1, depthwise=False)
        or why_no_conv(module, "q_dwconv", 3, depthwise=True)
        or why_no_conv(module, "kv_dwconv", 3, depthwise=True)
        or why_no_conv(module, "project_out", 1, depthwise=False)
    )


def _forward_cross(module: Block, x: Tensor, y: Tensor) -> Tensor | None:
    """q of x, k and v of y. The kernel reads them as one tensor; that copy costs less than the kernel saves."""
    of_q, of_kv = module.q_dwconv, module.kv_dwconv
    (b, _, *of_x), (other, _, *of_y) = checks.sizes(x), checks.sizes(y)
    if [b, *of_x] != [other, *of_y] or not (is_plain(of_q) and is_plain(of_kv)):
        return None
    q = dwconv(apply(module.q, x), of_q.weight, of_q.bias)
    kv = dwconv(apply(module.kv, y), of_kv.weight, of_kv.bias)
    return apply(module.project_out, channel_attention(torch.cat((q, kv), 1), module.temperature))


def _why_not_feed_forward(module: Block) -> str | None:
    if not (hasattr(module, "project_in") and hasattr(module, "dwconv")):
        return ""
    return (
        why_no_conv(module, "project_in", 1, depthwise=False)
        or why_no_conv(module, "dwconv", 3, depthwise=True)
        or why_no_conv(module, "project_out", 1, depthwise=False)
    )


def _forward_feed_forward(module: Block, x: Tensor) -> Tensor | None:
    depthwise = module.dwconv
    if not is_plain(depthwise):
        return None
    hidden, close = apply(module.project_in, x), module.project_out
    if depthwise.bias is None and is_plain(close) and close.bias is None:
        y = gate_conv(hidden, depthwise.weight, close.weight)
        if y is not None:
            return y
    return apply(close, gated_dwconv(hidden, depthwise.weight, depthwise.bias))


ATTENTION = Layout("channel attention", _why_not, lambda m: (m.qkv.in_channels,), _forward)
CROSS_ATTENTION = Layout(
    "cross attention", _why_not_cross, lambda m: (m.q.in_channels, m.kv.in_channels), _forward_cross
)
FEED_FORWARD = Layout(
    "gated feed-forward", _why_not_feed_forward, lambda m: (m.project_in.in_channels,), _forward_feed_forward
)
