"""feature_distances of one layer for torch: schema, fake and autograd.

Lists of layers are summed by the public function: an op's list of tensors would be outside autograd, and
the sum is of [K, B] numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cpl_kernels import autocast, backends
from cpl_kernels.feature_distances.memory import gradient_like
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register_differentiable


def _forward(anchor: Tensor, others: Tensor, p: int, normalize: bool, backend: str) -> Tensor:
    return backends.select("feature_distances", backend, anchor, others).forward(anchor, others, p, normalize)


def _forward_fake(anchor: Tensor, others: Tensor, p: int, normalize: bool, backend: str) -> Tensor:
    return anchor.new_empty(others.shape[:2], dtype=autocast.wide(anchor.dtype, others.dtype))


def _backward(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = backends.select("feature_distances", backend, anchor, others)
    return chosen.backward(dy, anchor, others, p, normalize, need_anchor, need_others)


def _backward_fake(
    dy: Tensor,
    anchor: Tensor,
    others: Tensor,
    p: int,
    normalize: bool,
    need_anchor: bool,
    need_others: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """A gradient that is not needed is an empty tensor, of shape [0]."""
    return (
        gradient_like(anchor, 1) if need_anchor else anchor.new_empty(0),
        gradient_like(others, 2) if need_others else others.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    anchor, others, p, normalize, backend = inputs
    ctx.save_for_backward(anchor, others)
    ctx.p, ctx.normalize, ctx.backend = p, normalize, backend


def _grads(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    anchor, others = ctx.saved_tensors
    need_anchor, need_others = ctx.needs_input_grad[:2]
    danchor, dothers = feature_distances_backward(
        dy, anchor, others, ctx.p, ctx.normalize, need_anchor, need_others, ctx.backend
    )
    return danchor if need_anchor else None, dothers if need_others else None, None, None, None


feature_distances, feature_distances_backward = register_differentiable(
    "feature_distances",
    "(Tensor anchor, Tensor others, int p, bool normalize, str backend) -> Tensor",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor anchor, Tensor others, int p, bool normalize, bool need_anchor,"
    " bool need_others, str backend) -> (Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0, 1: 1}, 1),
)
