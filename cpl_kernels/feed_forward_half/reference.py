"""feed_forward_half in plain PyTorch: the definitions of its ops, one after the other."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.gated_dwconv.reference import gated_dwconv
from cpl_kernels.layer_norm2d.reference import layer_norm2d
from cpl_kernels.pointwise_conv.reference import pointwise_conv


def feed_forward_half(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    project_in: Tensor,
    dw: Tensor,
    project_out: Tensor,
    eps: float = 1e-5,
    center: bool = True,
) -> Tensor:
    """The definition; differentiable any number of times."""
    y = layer_norm2d(x, norm_weight, norm_bias, eps, center)
    gated = gated_dwconv(pointwise_conv(y, project_in, None, None), dw, None, True)
    return pointwise_conv(gated, project_out, None, x)
