"""info_nce for torch: schema, fake and autograd. Which backend runs is for backends.py to say.

Besides the loss, the op returns what its backward needs of each row, and with symmetric of each column:
its sums, [2, B] in the dtype of accumulation, and the number of positives, int64. The sums are the largest of
the products <query, key> that are compared, and the sum z of exp((product - largest) / temperature). z is +inf where
there is no positive (so that the softmax of a row left out is zero), and both are NaN where the target is out of
range. A probability is exp((product - largest) / temperature) / z: the difference is exact where products are, whatever
they have in common. From their log-sum-exp as one number it would be off by |log-sum-exp| * 2^-24.

And the gradients for a loss gradient of 1, in the dtype of accumulation, where they are ``had_at_once``: a
backend that can then saves the backward a product of matrices. Each is of shape [0] otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cpl_kernels import autocast, backends, checks, registration
from cpl_kernels.registration import register_differentiable


def check_values(
    queries: int, keys: int | None, targets: Tensor | None, temperature: Tensor, ignore_index: int
) -> None:
    """``keys`` is None where the keys are the queries."""
    if not checks.values_visible(temperature):
        return
    if not 0 < float(temperature) < float("inf"):
        raise ValueError(f"temperature must be a positive finite number, got {float(temperature)}")
    if targets is None:
        return
    last = (queries if keys is None else keys) - 1
    bad = (targets != ignore_index) & ((targets < 0) | (targets > last))
    if bad.any():
        raise ValueError(
            f"targets must be from 0 to M-1 = {last} or ignore_index = {ignore_index}, "
            f"got {int(targets[bad][0])}"
        )
    if keys is None and (targets == torch.arange(queries, device=targets.device)).any():
        raise ValueError(
            "with key=None a query is not compared with itself, so targets[i] = i is no positive; "
            "give the index of the other view"
        )


def had_at_once(
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    symmetric: bool,
    reduction: str,
    needs: tuple[bool, ...],
    backend: str,
) -> bool:
    """Whether the forward makes the gradients. A function of what fakes know too, so not of the backend chosen.

    One direction has a row's gradient once the row is known. Otherwise all sums come before any gradient:
    the forward then keeps similarities between the two, as many as fit into some memory of the order of its operands
    (tiled.kept_at_most). A queue is little worth there, and its tiles are not kept. reduction="none" needs the
    loss's gradient first. On a GPU no tile holds whole rows.
    """
    if not any(needs) or reduction == "none" or query.device.type != "cpu" or backend not in ("", "native"):
        return False
    return queue is None or (key is not None and not symmetric)


def _forward(
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    temperature: Tensor,
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    check_values(query.shape[0], None if key is None else key.shape[0], targets, temperature, ignore_index)
    module, needs = backends.select("info_nce", backend, query), (need_query, need_key, need_temperature)
    inputs = (query, key, queue, targets, query_labels, key_labels, temperature)
    if not had_at_once(query, key, queue, symmetric, reduction, needs, backend):
        outputs = module.forward(*inputs, symmetric, ignore_index, reduction)
        return *outputs, *(query.new_empty(0, dtype=temperature.dtype) for _ in needs)
    if not hasattr(module, "forward_with_gradients"):
        outputs = module.forward(*inputs, symmetric, ignore_index, reduction)
        # Not rounded yet: the loss's gradient is to come.
        exact = (x if x is None or not x.is_floating_point() else x.to(temperature.dtype) for x in inputs)
        one = torch.ones_like(temperature)
        gradients = module.backward(one, *exact, *outputs[1:], symmetric, ignore_index, reduction, *needs)
        return *outputs, *gradients
    return module.forward_with_gradients(*inputs, symmetric, ignore_index, reduction, *needs)


def _forward_fake(
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    temperature: Tensor,
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    rows, columns = query.shape[0], (query if key is None else key).shape[0] if symmetric else 0
    dtype = autocast.wide(query.dtype)
    needs = (need_query, need_key, need_temperature)
    if not had_at_once(query, key, queue, symmetric, reduction, needs, backend):
        need_query = need_key = need_temperature = False
    return (
        query.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
        query.new_empty((2, rows), dtype=dtype),
        query.new_empty(rows, dtype=torch.int64),
        query.new_empty((2, columns), dtype=dtype),
        query.new_empty(columns, dtype=torch.int64),
        query.new_empty(query.shape if need_query else (0,), dtype=dtype),
        query.new_empty(key.shape if need_key and key is not None else (0,), dtype=dtype),
        query.new_empty(() if need_temperature else (0,), dtype=dtype),
    )


def _backward(
    dloss: Tensor,
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    temperature: Tensor,
    row_sums: Tensor,
    row_positives: Tensor,
    column_sums: Tensor,
    column_positives: Tensor,
    dquery: Tensor,
    dkey: Tensor,
    dtemperature: Tensor,
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    had = ((dquery, need_query), (dkey, need_key), (dtemperature, need_temperature))
    if all(gradient.numel() or gradient.dim() != 1 for gradient, needed in had if needed):
        scaled = [gradient * dloss if needed else gradient.new_empty(0) for gradient, needed in had]
        return scaled[0].to(query.dtype), scaled[1].to(query.dtype), scaled[2]
    return backends.select("info_nce", backend, query).backward(
        dloss,
        query,
        key,
        queue,
        targets,
        query_labels,
        key_labels,
        temperature,
        row_sums,
        row_positives,
        column_sums,
        column_positives,
        symmetric,
        ignore_index,
        reduction,
        need_query,
        need_key,
        need_temperature,
    )


def _backward_fake(
    dloss: Tensor,
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    temperature: Tensor,
    row_sums: Tensor,
    row_positives: Tensor,
    column_sums: Tensor,
    column_positives: Tensor,
    dquery: Tensor,
    dkey: Tensor,
    dtemperature: Tensor,
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient that is not needed is an empty tensor, of shape [0]."""
    return (
        query.new_empty(query.shape if need_query else (0,)),
        query.new_empty(key.shape if need_key and key is not None else (0,)),
        temperature.new_empty(() if need_temperature else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, symmetric, ignore_index, reduction, _, _, _, backend = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(*tensors, *statistics)
    ctx.symmetric, ctx.ignore_index, ctx.reduction, ctx.backend = symmetric, ignore_index, reduction, backend


# torch has no public name for it. Where it has none at all, gradients are multiplied, by 1 too.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def _kept_gradients(dloss: Tensor, saved: tuple[Tensor, ...], *needs: bool) -> tuple[Tensor, ...] | None:
    """The gradients that came with the forward, where they are those asked for and nobody can ask again."""
    had, dtype = saved[-3:], saved[0].dtype
    if torch.is_grad_enabled() or registration.transformed((dloss, *had)) or not dloss.is_cpu or dloss.dim():
        return None
    if any(
        need and (x.dtype != dtype or (x.dim() == 1 and not x.numel()))
        for need, x in zip(needs, had, strict=True)
    ):
        return None
    return had if any(needs) and float(dloss) == 1.0 and not _keeps_graph() else None


def _grads(ctx: Any, dloss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    need_query, need_key, need_temperature = (ctx.needs_input_grad[i] for i in (0, 1, 6))
    saved = ctx.saved_tensors  # once: what is checkpointed can be had but once
    at_once = _kept_gradients(dloss, saved, need_query, need_key, need_temperature)
    dquery, dkey, dtemperature = at_once or info_nce_backward(
        dloss,
        *saved,
        ctx.symmetric,
        ctx.ignore_index,
        ctx.reduction,
        need_query,
        need_key,
        need_temperature,
        ctx.backend,
    )
    return (
        dquery if need_query else None,
        dkey if need_key else None,
        *(None,) * 4,
        dtemperature if need_temperature else None,
        *(None,) * 7,
    )


_INPUTS = (
    "Tensor query, Tensor? key, Tensor? queue, Tensor? targets, Tensor? query_labels, Tensor? key_labels, "
    "Tensor temperature, "
)

_NEEDS = "bool need_query, bool need_key, bool need_temperature"
_GRADIENTS = "Tensor, Tensor, Tensor"
_OUTPUTS = "Tensor, Tensor, Tensor, Tensor, Tensor"

info_nce, info_nce_backward = register_differentiable(
    "info_nce",
    f"({_INPUTS}bool symmetric, int ignore_index, str reduction, {_NEEDS}, str backend) -> ({_OUTPUTS}, {_GRADIENTS})",
    impl=_forward,
    fake=_forward_fake,
    backward_schema=f"(Tensor dloss, {_INPUTS}Tensor row_sums, Tensor row_positives, Tensor column_sums, "
    f"Tensor column_positives, Tensor dquery, Tensor dkey, Tensor dtemperature, bool symmetric, int ignore_index, "
    f"str reduction, {_NEEDS}, str backend) -> ({_GRADIENTS})",
    backward_impl=_backward,
    backward_fake=_backward_fake,
    save=_save,
    grads=_grads,
)
