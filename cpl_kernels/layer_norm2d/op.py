"""layer_norm2d for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpl_kernels import backends, layout
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register, register_differentiable


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.select("layer_norm2d", backend, x).forward(x, weight, bias, eps, center)


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, center: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return layout.empty_like(x), _statistics_like(x), _statistics_like(x)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, center: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.select("layer_norm2d", backend, x).backward(dy, x, weight, mean, rstd, center)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, center: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return layout.empty_like(x), mean.new_empty(weight.shape), mean.new_empty(weight.shape)


def _backward_and_output(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    center: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = backends.select("layer_norm2d", backend, x)
    if hasattr(chosen, "backward_and_output"):
        return chosen.backward_and_output(dy, x, weight, bias, mean, rstd, center)
    y, *_ = chosen.forward(x, weight, bias, eps, center)
    return *chosen.backward(dy, x, weight, mean, rstd, center), y


def _backward_and_output_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    center: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_backward_fake(dy, x, weight, mean, rstd, center, backend), layout.empty_like(x)


def _statistics_like(x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty(batch, height, width, dtype=torch.promote_types(x.dtype, torch.float32))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, center, backend = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.center, ctx.backend = center, backend
    ctx.bias_dtype = None if bias is None else bias.dtype


def _grads(ctx: Any, dy: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias = layer_norm2d_backward(dy, x, weight, mean, rstd, ctx.center, ctx.backend)
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    return (
        dx if needs_x else None,
        dweight.to(weight.dtype) if needs_weight else None,
        dbias.to(ctx.bias_dtype) if needs_bias else None,
        None,
        None,
        None,
    )


layer_norm2d, layer_norm2d_backward = register_differentiable(
    "layer_norm2d",
    "(Tensor x, Tensor weight, Tensor? bias, float eps, bool center, str backend) -> (Tensor, Tensor, Tensor)",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, bool center, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0}),
)

# The gradients and, once more, y, which a backward that has all for it at hand gives along (see
# backends.gives_output). For autograd functions that would otherwise keep y; it has no derivative of its own.
layer_norm2d_backward_and_output = register(
    "layer_norm2d_backward_and_output",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, Tensor mean, Tensor rstd, float eps, bool center, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    impl=_backward_and_output,
    fake=_backward_and_output_fake,
)
