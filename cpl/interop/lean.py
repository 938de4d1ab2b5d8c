"""The transformer block that keeps less for its backward pass, for blocks in the layout of Restormer's.

Source of the layout: Restormer, arXiv 2111.09881, figure 2. What is kept: :mod:`cpl.nn.recompute`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cpl.interop import norms
from cpl.interop.attention import ATTENTION, FEED_FORWARD
from cpl.interop.structure import Block, Layout, Options, is_plain, is_untouched
from cpl.nn.attention import attend
from cpl.nn.feed_forward import gate
from cpl.nn.pointwise import pointwise_conv
from cpl.nn.recompute import recomputed_block, recomputed_conv
from cpl_kernels import layer_norm2d

KIND = "transformer block"
_CONVS = (
    ("attn", "qkv"),
    ("attn", "qkv_dwconv"),
    ("attn", "project_out"),
    ("ffn", "project_in"),
    ("ffn", "dwconv"),
    ("ffn", "project_out"),
)
_PARTS = ("norm1", "attn", "norm2", "ffn")


def _why_not(module: Block) -> str | None:
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in _PARTS):
        return ""
    for name in ("norm1", "norm2"):
        norm = getattr(module, name)
        if norms.WRAPPED.why_not(norm) is not None and norms.PLAIN.why_not(norm) is not None:
            return f"{name} is no layer norm over channels"
    for name, layout in (("attn", ATTENTION), ("ffn", FEED_FORWARD)):
        why = layout.why_not(getattr(module, name))
        if why is not None:
            return f"{name} is no {layout.kind}{why and ': ' + why}"
    biased = [
        f"{part}.{name}" for part, name in _CONVS if getattr(module, part)._modules[name].bias is not None
    ]
    return f"{', '.join(biased)} have a bias, which it is not written for" if biased else None


def _is_untouched(module: Block) -> bool:
    convs = (getattr(getattr(module, part), name) for part, name in _CONVS)
    return all(is_untouched(getattr(module, part)) for part in _PARTS) and all(
        isinstance(conv, nn.Conv2d) and is_plain(conv) for conv in convs
    )


def _forward(module: Block, x: Tensor, keep: str) -> Tensor | None:
    if not torch.is_grad_enabled() or not _is_untouched(module):
        return None
    if torch.compiler.is_compiling():  # a compiler chooses itself what of its own code to compute again
        return None if keep == "products" else checkpoint(partial(_keep_all, module), x, use_reentrant=False)
    return _keep_products(module, x) if keep == "products" else _keep_input(module, x)


def _keep_all(module: Block, x: Tensor) -> Tensor:
    x = x + module.attn(module.norm1(x))
    return x + module.ffn(module.norm2(x))


def _keep_products(module: Block, x: Tensor) -> Tensor:
    attn, ffn = module.attn, module.ffn
    norm1, tensors1 = _norm(module.norm1)
    qkv = recomputed_conv(norm1, attn.qkv.weight, x, *tensors1)
    x = x + recomputed_conv(attend, attn.project_out.weight, qkv, attn.qkv_dwconv.weight, attn.temperature)
    norm2, tensors2 = _norm(module.norm2)
    hidden = recomputed_conv(norm2, ffn.project_in.weight, x, *tensors2)
    return x + recomputed_conv(gate, ffn.project_out.weight, hidden, ffn.dwconv.weight)


def _keep_input(module: Block, x: Tensor) -> Tensor:
    attn, ffn = module.attn, module.ffn
    norm1, tensors1 = _norm(module.norm1)
    norm2, tensors2 = _norm(module.norm2)
    return recomputed_block(
        partial(_attention_half, norm1),
        attn.project_out.weight,
        (*tensors1, attn.qkv.weight, attn.qkv_dwconv.weight, attn.temperature),
        partial(_feed_forward_half, norm2),
        ffn.project_out.weight,
        (*tensors2, ffn.project_in.weight, ffn.dwconv.weight),
        x,
    )


def _norm(module: Block) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor | None]]:
    """The function of an image and of the tensors; without a bias the mean stays in, as in Restormer."""
    weight, bias, eps = norms.parts(module)
    return partial(layer_norm2d, eps=eps, center=bias is not None), (weight, bias)


def _attention_half(
    norm: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    qkv: Tensor,
    depthwise: Tensor,
    temperature: Tensor,
) -> Tensor:
    return attend(pointwise_conv(norm(x, weight, bias), qkv), depthwise, temperature)


def _feed_forward_half(
    norm: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    project_in: Tensor,
    depthwise: Tensor,
) -> Tensor:
    return gate(pointwise_conv(norm(x, weight, bias), project_in), depthwise)


def _options(keep: str) -> Callable[[Block], Iterable[Options]]:
    return lambda _module: ({"keep": keep},)


def block(keep: str) -> Layout:
    """The layout of a transformer block that keeps "products" or "input"."""
    return Layout(KIND, _why_not, lambda m: (m.attn.qkv.in_channels,), _forward, options=_options(keep))
