"""pointwise_conv for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpl_kernels import backends, layout
from cpl_kernels.mapping import Rows
from cpl_kernels.pointwise_conv import reference
from cpl_kernels.registration import register_differentiable


def _select(backend: str, x: Tensor, *others: Tensor | None) -> Any:
    # As dispatch.py names them: torch's convolution walks channels-last images as they are.
    variant = "channels-last" if layout.is_channels_last(x) else "planar"
    given = (t for t in others if t is not None)
    return backends.select("pointwise_conv", backend, x, *given, variant=variant)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, backend: str) -> Tensor:
    return _select(backend, x, weight, bias).forward(x, weight, bias, residual)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, backend: str
) -> Tensor:
    return layout.empty_like(x, weight.shape[0])


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _select(backend, x, weight).backward(dy, x, weight, need_x, need_weight, need_bias)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = reference.unneeded(x, weight)
    return (
        layout.empty_like(x) if need_x else dx,
        dweight.new_empty(weight.shape) if need_weight else dweight,
        dbias.new_empty(weight.shape[0]) if need_bias else dbias,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, backend = inputs
    ctx.save_for_backward(x, weight)
    ctx.dtypes = None if bias is None else bias.dtype, None if residual is None else residual.dtype
    ctx.backend = backend


def _grads(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    dx = dweight = dbias = None
    if any(needs):
        dx, dweight, dbias = pointwise_conv_backward(dy, x, weight, *needs, ctx.backend)
    return (
        dx if needs[0] else None,
        dweight.to(weight.dtype) if needs[1] and dweight is not None else None,
        dbias.to(ctx.dtypes[0]) if needs[2] and dbias is not None else None,
        dy.to(ctx.dtypes[1]) if ctx.needs_input_grad[3] else None,
        None,
    )


pointwise_conv, pointwise_conv_backward = register_differentiable(
    "pointwise_conv",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str backend) -> Tensor",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor x, Tensor weight, bool need_x, bool need_weight, bool need_bias, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0, 3: 0}),
)


def gradient_of_x(dy: Tensor, weight: Tensor, backend: str) -> Tensor:
    """dx [B, C, H, W] of dy [B, O, H, W], in the dtype and layout of dy: the convolution with the weight turned.

    For autograd functions that do not keep x; ``pointwise_conv_backward`` computes the same bits.
    """
    return pointwise_conv(dy, weight.transpose(0, 1), None, None, backend)
