"""dwconv for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpl_kernels import backends
from cpl_kernels.dwconv import reference
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register_differentiable

_VARIANTS = {3: "3x3", 5: "5x5", 7: "7x7"}  # as dispatch.py names them


def _select(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    given = (x, weight) if bias is None else (x, weight, bias)
    return backends.select("dwconv", backend, *given, variant=_VARIANTS[weight.shape[-1]])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return _select(backend, x, weight, bias).forward(x, weight, bias)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _select(backend, x, weight, bias).backward(dy, x, weight, bias)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.accumulation_dtype(x, weight, bias)
    return x.new_empty(x.shape), x.new_empty(weight.shape, dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, backend = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.backend = backend


def _grads(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = dwconv_backward(dy, x, weight, bias, ctx.backend)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    return (
        dx if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(bias.dtype) if need_bias else None,
        None,
    )


dwconv, dwconv_backward = register_differentiable(
    "dwconv",
    "(Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor x, Tensor weight, Tensor? bias, str backend) -> (Tensor, Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0}),
)
