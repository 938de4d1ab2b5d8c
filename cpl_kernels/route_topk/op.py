"""route_topk for torch: checks, schema, fake and autograd. Which backend runs is for backends.py to say."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import backends, checks
from cpl_kernels.mapping import Rows
from cpl_kernels.registration import register_differentiable
from cpl_kernels.route_topk import values

NORMALIZE = ("none", "topk", "straight_through")

_warned = False


def check(logits: Tensor, k: int, normalize: str) -> None:
    """Everything about a routing call that can be said without looking at values."""
    checks.floating("logits", logits)
    checks.rank("logits", logits, "[B, N]")
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    prompts = checks.sizes(logits)[1]
    if not 1 <= k <= prompts:
        raise ValueError(
            f"k must be from 1 to N = {prompts} (logits is {tuple(checks.sizes(logits))}), got {k}"
        )
    checks.one_of("normalize", normalize, NORMALIZE)


def warn_if_cut(k: int, renormalize: bool) -> None:
    """Say once that k=1 with renormalised weights leaves the router without a gradient."""
    global _warned
    if renormalize and k == 1 and not _warned:
        _warned = True
        warnings.warn(
            'route_topk: normalize="topk" with k=1 makes every weight 1, so the router gets no gradient '
            'and does not learn; use normalize="straight_through", "none" or k >= 2',
            stacklevel=2,
        )


def _forward(logits: Tensor, k: int, renormalize: bool, backend: str) -> tuple[Tensor, Tensor]:
    warn_if_cut(k, renormalize)
    chosen = backends.select("route_topk", backend, logits)
    if not values.looked_at_by(chosen):
        values.check(logits)
    return chosen.forward(logits, k, renormalize)


def _forward_fake(logits: Tensor, k: int, renormalize: bool, backend: str) -> tuple[Tensor, Tensor]:
    weights = logits.new_empty(logits.shape[0], k)
    return weights, torch.empty_like(weights, dtype=torch.int64)


def _backward(dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool, backend: str) -> Tensor:
    return backends.select("route_topk", backend, logits).backward(dweights, logits, indices, renormalize)


def _backward_fake(
    dweights: Tensor, logits: Tensor, indices: Tensor, renormalize: bool, backend: str
) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, _, renormalize, backend = inputs
    _, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(logits, indices)
    ctx.renormalize, ctx.backend = renormalize, backend


def _grads(ctx: Any, dweights: Tensor, _: None) -> tuple[Tensor | None, ...]:
    logits, indices = ctx.saved_tensors
    dlogits = route_topk_backward(dweights, logits, indices, ctx.renormalize, ctx.backend)
    return dlogits, None, None, None


route_topk, route_topk_backward = register_differentiable(
    "route_topk",
    "(Tensor logits, int k, bool renormalize, str backend) -> (Tensor, Tensor)",
    impl=_forward,
    fake=_forward_fake,
    backward_schema="(Tensor dweights, Tensor logits, Tensor indices, bool renormalize, str backend)"
    " -> Tensor",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
    rows=Rows({0: 0}),
    backward_rows=Rows({0: 0, 1: 0, 2: 0}),
)
