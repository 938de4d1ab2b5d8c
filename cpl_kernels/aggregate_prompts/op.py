"""aggregate_prompts for torch: schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import NAMESPACE, register_composed, register_differentiable


def check_values(indices: Tensor, prompts: int) -> None:
    if not checks.values_visible(indices) or indices.numel() == 0:
        return
    lowest, highest = (int(i) for i in indices.aminmax())
    if lowest < 0 or highest >= prompts:
        raise ValueError(
            f"indices must be from 0 to N-1 = {prompts - 1}, got {lowest if lowest < 0 else highest}"
        )


def _forward(
    weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int, backend: str
) -> Tensor:
    chosen = backends.select("aggregate_prompts", backend, weights, indices, prompts)
    if not getattr(chosen, "LOOKS_AT_VALUES", False):
        check_values(indices, prompts.shape[0])
    return chosen.forward(weights, indices, prompts, height, width)


def _forward_fake(
    weights: Tensor, indices: Tensor, prompts: Tensor, height: int, width: int, backend: str
) -> Tensor:
    return prompts.new_empty(weights.shape[0], prompts.shape[1], height, width)


def _backward(
    dy: Tensor,
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    need_weights: bool,
    need_prompts: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = backends.select("aggregate_prompts", backend, weights, indices, prompts)
    return chosen.backward(dy, weights, indices, prompts, need_weights, need_prompts)


def _backward_fake(
    dy: Tensor,
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    need_weights: bool,
    need_prompts: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """A gradient that is not needed is an empty tensor, of shape [0]."""
    return (
        weights.new_empty(weights.shape if need_weights else (0,)),
        prompts.new_empty(prompts.shape if need_prompts else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, indices, prompts, _, _, backend = inputs
    ctx.save_for_backward(weights, indices, prompts)
    ctx.backend = backend


def _grads(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    weights, indices, prompts = ctx.saved_tensors
    need_weights, _, need_prompts = ctx.needs_input_grad[:3]
    dweights, dprompts = aggregate_prompts_backward(
        dy, weights, indices, prompts, need_weights, need_prompts, ctx.backend
    )
    return dweights if need_weights else None, None, dprompts if need_prompts else None, None, None, None


aggregate_prompts, aggregate_prompts_backward = register_differentiable(
    "aggregate_prompts",
    "(Tensor weights, Tensor indices, Tensor prompts, SymInt height, SymInt width, str backend) -> Tensor",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dy, Tensor weights, Tensor indices, Tensor prompts, bool need_weights,"
    " bool need_prompts, str backend) -> (Tensor, Tensor)",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0, 1: 0}),
)


def _at(weights: Tensor, indices: Tensor, prompts: Tensor, size: Tensor, backend: str) -> Tensor:
    height, width = size.tolist()
    return NAMESPACE.aggregate_prompts(weights, indices, prompts, height, width, backend)


# A graph of torch.jit.trace holds an op's int as the number that it was. It follows a tensor.
_aggregate_prompts_at = register_composed(
    "aggregate_prompts_at",
    "(Tensor weights, Tensor indices, Tensor prompts, Tensor size, str backend) -> Tensor",
    _at,
)


def aggregate_prompts_traced(
    weights: Tensor,
    indices: Tensor,
    prompts: Tensor,
    height: Tensor | int,
    width: Tensor | int,
    backend: str,
) -> Tensor:
    """aggregate_prompts under torch.jit.trace, with sizes as it records them."""
    size = torch.stack([n if isinstance(n, Tensor) else torch.full((), n) for n in (height, width)])
    return _aggregate_prompts_at(weights, indices, prompts, size, backend)
