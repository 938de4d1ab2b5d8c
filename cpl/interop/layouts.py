"""The blocks that other people's models are made of, known by their attributes, and how ours computes each.

A layout names the parts that a block must have; no code of those projects is imported or copied. What is found is
still only a candidate: :mod:`cpl.interop.patch` compares both computations before it swaps anything.

Sources of the layouts: Restormer, arXiv 2111.09881 (norm, attention, feed-forward; PromptIR, AdaIR and MoCE-IR keep its
names); PromptIR, arXiv 2306.13090 (prompt block); NAFNet, arXiv 2204.04676 (norm, gated block).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cpl.nn.pointwise import pointwise_conv
from cpl_kernels import channel_attention, dwconv, gated_dwconv, layer_norm2d, sparse_prompt

Block = Any  # an nn.Module whose parts are known by name only
Forward = Callable[[Block, Tensor], Tensor]
_RESTORMER_EPS = 1e-5


@dataclass(frozen=True)
class Layout:
    """One kind of block.

    Attributes:
        kind: what the report calls it.
        why_not: module -> None where it has this layout, else what is missing; "" where it does not even look like it.
        channels: module -> C of the input [B, C, H, W] that it takes.
        forward: our computation of it.
    """

    kind: str
    why_not: Callable[[Block], str | None]
    channels: Callable[[Block], int]
    forward: Forward


def _vector(module: Block, name: str) -> bool:
    value = getattr(module, name, None)
    return isinstance(value, Tensor) and value.dim() == 1


def _conv(module: Block, name: str, kernel: int, depthwise: bool) -> str | None:
    """What keeps attribute ``name`` from being a plain convolution that keeps the size of an image."""
    conv = getattr(module, name, None)
    if not isinstance(conv, nn.Conv2d):
        return f"it has no convolution {name}"
    same = (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
    if same != ((kernel, kernel), (1, 1), (1, 1), (kernel // 2, kernel // 2), "zeros"):
        return f"{name} is {conv}, not {kernel}x{kernel} with stride 1 and zero padding"
    if conv.groups != (conv.in_channels if depthwise else 1) or (
        depthwise and conv.out_channels != conv.in_channels
    ):
        return f"{name} has {conv.groups} groups for {conv.in_channels} to {conv.out_channels} channels"
    return None


def _apply(conv: Block, x: Tensor) -> Tensor:
    """A 1x1 convolution: ours where it is a plain one that nobody watches or has changed."""
    plain = type(conv) is nn.Conv2d and conv.bias is None and "forward" not in vars(conv)
    if plain and not (conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks):
        return pointwise_conv(x, conv.weight)
    return conv(x)


# -- norms


def _wrapped_norm(module: Block) -> str | None:
    body = getattr(module, "body", None)
    if not (isinstance(body, nn.Module) and "Norm" in type(module).__name__ and _vector(body, "weight")):
        return ""
    if len(list(module.children())) != 1 or set(dict(module.named_parameters())) - {
        "body.weight",
        "body.bias",
    }:
        return "it has more parts than body.weight and body.bias"
    return None


def _wrapped_norm_forward(module: Block, x: Tensor) -> Tensor:
    body = module.body
    bias = getattr(body, "bias", None)
    return layer_norm2d(x, body.weight, bias, getattr(body, "eps", _RESTORMER_EPS), center=bias is not None)


def _plain_norm(module: Block) -> str | None:
    looks = "LayerNorm" in type(module).__name__ and _vector(module, "weight") and not list(module.children())
    if not looks or type(module).forward is nn.LayerNorm.forward:
        return ""
    if set(dict(module.named_parameters())) - {"weight", "bias"}:
        return "it has more parameters than weight and bias"
    if not isinstance(getattr(module, "eps", None), float):
        return "it has no attribute eps"
    return None


def _plain_norm_forward(module: Block, x: Tensor) -> Tensor:
    return layer_norm2d(x, module.weight, getattr(module, "bias", None), module.eps)


# -- attention, feed-forward


def _attention(module: Block) -> str | None:
    temperature = getattr(module, "temperature", None)
    if not isinstance(temperature, Tensor):
        return ""
    if temperature.dim() != 3 or temperature.shape[1:] != (1, 1):
        return f"its temperature is {tuple(temperature.shape)}, not [heads, 1, 1]"
    return (
        _conv(module, "qkv", 1, depthwise=False)
        or _conv(module, "qkv_dwconv", 3, depthwise=True)
        or _conv(module, "project_out", 1, depthwise=False)
    )


def _attention_forward(module: Block, x: Tensor) -> Tensor:
    depthwise = module.qkv_dwconv
    qkv = dwconv(_apply(module.qkv, x), depthwise.weight, depthwise.bias)
    return _apply(module.project_out, channel_attention(qkv, module.temperature))


def _feed_forward(module: Block) -> str | None:
    if not (hasattr(module, "project_in") and hasattr(module, "dwconv")):
        return ""
    return (
        _conv(module, "project_in", 1, depthwise=False)
        or _conv(module, "dwconv", 3, depthwise=True)
        or _conv(module, "project_out", 1, depthwise=False)
    )


def _feed_forward_forward(module: Block, x: Tensor) -> Tensor:
    dwconv = module.dwconv
    return _apply(module.project_out, gated_dwconv(_apply(module.project_in, x), dwconv.weight, dwconv.bias))


# -- NAFNet's block: the depthwise convolution and the gate behind it are one kernel


def _gated_block(module: Block) -> str | None:
    if not (hasattr(module, "sg") and hasattr(module, "sca")):
        return ""
    missing = [
        n for n in ("norm1", "norm2", "dropout1", "dropout2", "beta", "gamma") if not hasattr(module, n)
    ]
    if missing:
        return f"it has no {', '.join(missing)}"
    return _conv(module, "conv2", 3, depthwise=True) or next(
        filter(None, (_conv(module, f"conv{i}", 1, depthwise=False) for i in (1, 3, 4, 5))), None
    )


def _gated_block_forward(module: Block, x: Tensor) -> Tensor:
    conv2 = module.conv2
    y = gated_dwconv(_apply(module.conv1, module.norm1(x)), conv2.weight, conv2.bias, activation="none")
    y = module.dropout1(_apply(module.conv3, y * module.sca(y)))
    x = x + y * module.beta
    y = module.sg(_apply(module.conv4, module.norm2(x)))
    return x + module.dropout2(_apply(module.conv5, y)) * module.gamma


# -- PromptIR's prompt block


def _prompt(module: Block) -> str | None:
    pool = getattr(module, "prompt_param", None)
    if not isinstance(pool, Tensor):
        return ""
    if pool.dim() != 5 or pool.shape[0] != 1:
        return f"its prompt_param is {tuple(pool.shape)}, not [1, N, C, S, S]"
    router = getattr(module, "linear_layer", None)
    if not isinstance(router, nn.Linear) or router.out_features != pool.shape[1]:
        return "it has no linear_layer with an output for each prompt"
    return _conv(module, "conv3x3", 3, depthwise=False)


def _prompt_forward(module: Block, x: Tensor) -> Tensor:
    pool = module.prompt_param[0]
    logits = module.linear_layer(x.mean((2, 3)))
    return module.conv3x3(sparse_prompt(logits, pool, len(pool), (x.shape[2], x.shape[3])))


LAYOUTS = (
    Layout("layer norm", _wrapped_norm, lambda m: len(m.body.weight), _wrapped_norm_forward),
    Layout("layer norm", _plain_norm, lambda m: len(m.weight), _plain_norm_forward),
    Layout("channel attention", _attention, lambda m: m.qkv.in_channels, _attention_forward),
    Layout("gated feed-forward", _feed_forward, lambda m: m.project_in.in_channels, _feed_forward_forward),
    Layout("gated block", _gated_block, lambda m: m.conv1.in_channels, _gated_block_forward),
    Layout("prompt block", _prompt, lambda m: m.linear_layer.in_features, _prompt_forward),
)
