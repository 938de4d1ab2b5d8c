"""gated_dwconv for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpl_kernels import backends
from cpl_kernels.gated_dwconv import reference
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register, register_differentiable


def _given(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    return (x, weight) if bias is None else (x, weight, bias)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str) -> Tensor:
    return backends.select("gated_dwconv", backend, *_given(x, weight, bias)).forward(x, weight, bias, gelu)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels // 2, height, width)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return backends.select("gated_dwconv", backend, *_given(x, weight, bias)).backward(
        dy, x, weight, bias, gelu
    )


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.accumulation_dtype(x, weight, bias)
    return x.new_empty(x.shape), x.new_empty(weight.shape, dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _backward_and_output(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen = backends.select("gated_dwconv", backend, *_given(x, weight, bias))
    if hasattr(chosen, "backward_and_output"):
        return chosen.backward_and_output(dy, x, weight, bias, gelu)
    return *chosen.backward(dy, x, weight, bias, gelu), chosen.forward(x, weight, bias, gelu)


def _backward_and_output_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = _backward_fake(dy, x, weight, bias, gelu, backend)
    return *gradients, _forward_fake(x, weight, bias, gelu, backend)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, gelu, backend = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.gelu, ctx.backend = gelu, backend


def _grads(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = gated_dwconv_backward(dy, x, weight, bias, ctx.gelu, ctx.backend)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    return (
        dx if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(bias.dtype) if need_bias else None,
        None,
        None,
    )


gated_dwconv, gated_dwconv_backward = register_differentiable(
    "gated_dwconv",
    "(Tensor x, Tensor weight, Tensor? bias, bool gelu, str backend) -> Tensor",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool gelu, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0}),
)

# The gradients and, once more, y, which a backward that computes it anyway gives along (see backends.gives_output).
# For autograd functions that would otherwise keep y; it has no derivative of its own.
gated_dwconv_backward_and_output = register(
    "gated_dwconv_backward_and_output",
    "(Tensor dy, Tensor x, Tensor weight, Tensor? bias, bool gelu, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    impl=_backward_and_output,
    fake=_backward_and_output_fake,
)
