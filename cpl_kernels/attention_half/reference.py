"""attention_half in plain PyTorch: the definitions of its ops, one after the other."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.channel_attention.reference import channel_attention
from cpl_kernels.dwconv.reference import dwconv
from cpl_kernels.layer_norm2d.reference import layer_norm2d
from cpl_kernels.pointwise_conv.reference import pointwise_conv


def attention_half(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    qkv: Tensor,
    dw: Tensor,
    temperature: Tensor,
    project: Tensor,
    eps: float = 1e-5,
    center: bool = True,
) -> Tensor:
    """The definition; differentiable any number of times."""
    y = layer_norm2d(x, norm_weight, norm_bias, eps, center)
    mixed = channel_attention(dwconv(pointwise_conv(y, qkv, None, None), dw, None), temperature)
    return pointwise_conv(mixed, project, None, x)
