"""What a block need not keep for its backward pass, because a backward kernel gives it along.

For the gradient of a 1x1 convolution's weight its input is needed: the output of the norm or of the gate before it, C
and h of the 19 C channels that a transformer block would keep. The backward of the norm or the gate has that output at
hand, computed again from what it keeps anyway. So the backward pass takes another order: first the gradient of what
lies between, then the norm's or the gate's backward, which writes its output too, then the weight's gradient. That
costs one more write of a map that would otherwise have been read from afar.

Nothing here is approximate: the same arithmetic runs on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cpl.nn.norm import Norm
from cpl.nn.pointwise import (
    is_product,
    pointwise_conv,
    product_backward_of_weight,
    product_backward_of_x,
    requested,
)
from cpl_kernels import autocast, backends
from cpl_kernels.gated_dwconv.op import gated_dwconv, gated_dwconv_backward_and_output
from cpl_kernels.layer_norm2d.op import layer_norm2d, layer_norm2d_backward_and_output
from cpl_kernels.registration import transformed

Tensors = Sequence[Tensor | None]


def norm_conv(x: Tensor, norm: Norm, weight: Tensor) -> Tensor | None:
    """``pointwise_conv(norm(x), weight)``, of which x, the norm's statistics and the tensors are kept.

    Args:
        x: [B, C, H, W].
        weight: [C', C, 1, 1].

    Returns:
        [B, C', H, W], or None where it would not pay or the call is not plain.
    """
    request = backends.requested("layer_norm2d", None)
    if not (
        _pays((x, *norm.tensors), weight)
        and all(t is None or t.shape == (x.shape[1],) for t in norm.tensors)
        and norm.eps >= 0
        and backends.gives_output("layer_norm2d", request, x)
    ):
        return None
    return _Conv.apply(_Norm(norm.eps, norm.center, request), weight, x, *norm.tensors)


def gate_conv(hidden: Tensor, depthwise: Tensor, weight: Tensor) -> Tensor | None:
    """``pointwise_conv(gated_dwconv(hidden, depthwise), weight)``, of which hidden and the weights are kept.

    Args:
        hidden: [B, 2h, H, W].
        depthwise: [2h, 1, 3, 3].
        weight: [C', h, 1, 1].

    Returns:
        [B, C', H, W], or None where it would not pay or the call is not plain.
    """
    request = backends.requested("gated_dwconv", None)
    if not (
        _pays((hidden, depthwise), weight)
        and hidden.shape[1] == 2 * weight.shape[1]
        and depthwise.shape == (hidden.shape[1], 1, 3, 3)
        and backends.gives_output("gated_dwconv", request, hidden, depthwise)
    ):
        return None
    return _Conv.apply(_Gate(request), weight, hidden, depthwise)


def _pays(inner: Tensors, weight: Tensor) -> bool:
    """Whether the convolution's input would be kept for the gradient of its weight, beside what the backward of
    ``inner`` (an image and its tensors) is computed from anyway, and the call is to be computed and nothing else."""
    x, *_ = inner
    given = (weight, *(t for t in inner if t is not None))
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and any(t is not None and t.requires_grad for t in inner)
        and x is not None
        and x.dim() == 4
        and all(t.device == x.device and t.is_floating_point() for t in given)
        and not transformed(given)
        and is_product(x, weight)
    )


class _Inner(Protocol):
    """What comes before the convolution."""

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        """Its output, and what its backward wants to be kept."""

    def backward(self, dy: Tensor, kept: Tensors) -> tuple[Tensor, Tensors]:
        """Its output once more, and the gradients of its tensors."""


class _Norm:
    def __init__(self, eps: float, center: bool, request: str) -> None:
        self.eps, self.center, self.request = eps, center, request

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        y, mean, rstd = layer_norm2d(*tensors, self.eps, self.center, self.request)
        return y, (*tensors, mean, rstd)

    def backward(self, dy: Tensor, kept: Tensors) -> tuple[Tensor, Tensors]:
        *gradients, y = layer_norm2d_backward_and_output(dy, *kept, self.eps, self.center, self.request)
        return y, gradients


class _Gate:
    def __init__(self, request: str) -> None:
        self.request = request

    def forward(self, *tensors: Tensor | None) -> tuple[Tensor, Tensors]:
        hidden, weight = tensors
        assert hidden is not None
        hidden = autocast.cast(hidden)
        return gated_dwconv(hidden, weight, None, True, self.request), (hidden, weight)

    def backward(self, dy: Tensor, kept: Tensors) -> tuple[Tensor, Tensors]:
        dx, dweight, _, y = gated_dwconv_backward_and_output(dy, *kept, None, True, self.request)
        return y, (dx, dweight)


class _Conv(torch.autograd.Function):
    """``pointwise_conv(inner(*tensors), weight)``."""

    @staticmethod
    def forward(ctx: Any, inner: _Inner, weight: Tensor, *tensors: Tensor | None) -> Tensor:
        dtype = weight.dtype
        y, kept = inner.forward(*tensors)
        weight = autocast.cast(weight)  # once, for both passes
        ctx.inner, ctx.dtype, ctx.weight_dtype, ctx.backend = inner, y.dtype, dtype, requested()
        ctx.save_for_backward(weight, *kept)
        return pointwise_conv(y, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        weight, *kept = ctx.saved_tensors
        dy = product_backward_of_x(dout, weight, ctx.backend).to(ctx.dtype)
        y, gradients = ctx.inner.backward(dy, kept)
        del dy
        dweight = product_backward_of_weight(dout, y, weight, ctx.backend).to(ctx.weight_dtype)
        needs = ctx.needs_input_grad[2:]
        return None, dweight, *(g if need else None for g, need in zip(gradients, needs, strict=True))
