"""InfoNCE: cross-entropy of similarities, for every arrangement of positives that the field uses."""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels import autocast, backends, checks
from cpl_kernels.info_nce import op as _op

__all__ = ["info_nce"]


def info_nce(
    query: Tensor,
    key: Tensor | None = None,
    targets: Tensor | None = None,
    query_labels: Tensor | None = None,
    key_labels: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    symmetric: bool = False,
    queue: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    backend: str | None = None,
) -> Tensor:
    """Pull each query to its positive keys and push it from all others.

    With s_ij = <query_i, key_j> / temperature, A(i) the keys that query i is compared with and P(i) its positives:

        loss_i = log sum_{a in A(i)} exp(s_ia) - mean_{p in P(i)} s_ip

    which for one positive is cross-entropy, and for several the L_out form of SupCon. Nothing is
    normalised inside: pass unit vectors for cosines. Which keys are positives:

        neither targets nor labels    P(i) = {i}; needs key, M >= B (CLIP; further keys are negatives)
        targets                       P(i) = {targets[i]}
        query_labels, key_labels      P(i) = {j: key_labels[j] = query_labels[i]}
        key=None                      the keys are the queries, i is not in A(i). With targets: SimCLR
                                      (the index of the other view). With query_labels alone: SupCon

    A(i) is all keys, and the queue's. A row without a positive (its target or label is ignore_index, or no
    key has its label) is left out of the mean and gives 0; if all are, the loss is 0, and so is its gradient.

    Args:
        query: [B, D], D >= 1, any strides; float32, bfloat16, float16 or float64.
        key: [M, D] in the dtype of query, or None.
        targets: [B], int64, from 0 to M-1 or ignore_index.
        query_labels: [B], int64. ignore_index: no positive.
        key_labels: [M], int64; given with query_labels unless key is None.
        temperature: > 0; a number, or a floating tensor of shape [] or [1], differentiable. A number is no
            smaller than the smallest normal one of the dtype of accumulation (1.2e-38), so that 1 / t is finite.
        symmetric: average with the loss of each key against all queries, whose positives are the
            same pairs. Needs labels, or neither labels nor targets and B = M.
        queue: [Q, D] in the dtype of query: further negatives for the queries (MoCo), none for the keys of
            the symmetric half. No gradient reaches it.
        ignore_index: the target or label that means "none".
        reduction: "mean" (over the rows with a positive), "sum" or "none". A symmetric loss is the mean of the two
            directions' reduced values.
        backend: "reference", "native", "triton" or "cuda"; None picks the default for the device.

    Returns:
        [] or, with reduction="none", [B], in float32 (float64 for float64). Similarities are summed, and
        log-sum-exps taken, in float32 or better. A row's maximum is subtracted before anything else is done: any
        finite similarity is safe, and what all similarities have in common costs no digit of the loss or a gradient.
        Under autocast query, key and queue are cast to the autocast dtype, as for a matmul. Differentiable with
        respect to query, key and temperature. For the backward the inputs and each row's maximum and sum of
        exponentials are kept, O((B + M) D). On the CPU a loss that is reduced to a number makes its
        gradients with the forward, unless it has a queue and is symmetric or without key, and they are kept instead.
        There a thread also keeps up to 64 MiB that a call worked in for its next one; and on matrix units (see
        cpl_kernels.products) what is below 1e-30 in a gradient loses digits.

    Raises:
        TypeError: dtypes that are not floating or differ, labels or targets that are not int64, an ignore_index
            that is not an integer.
        ValueError: wrong shapes; tensors on several devices; an arrangement not in the table above;
            symmetric with targets, or without labels and B != M, or with reduction="none" and B != M;
            a temperature that is not positive; on the CPU a target out of range, or with key=None the
            query itself. On CUDA, where values are not looked at (CPL_CHECK=1 looks), such a target
            gives NaN, and so does a temperature that is not positive.
        RuntimeError: the named backend cannot serve this call.

    Source: van den Oord et al., arXiv 1807.03748, equation 4; Khosla et al., "SupCon", arXiv 2004.11362,
    equation 2 (L_out); Radford et al., "CLIP", arXiv 2103.00020, figure 3; He et al., "MoCo", arXiv 1911.05722.
    """
    checks.floating("query", query)
    checks.rank("query", query, "[B, D]")
    rows, features = checks.sizes(query)
    if features < 1:
        raise ValueError(f"query must have at least one feature, got shape {tuple(query.shape)}")
    query = autocast.cast(query)
    key, queue = _keys("key", key, query), _keys("queue", queue, query)
    keys = rows if key is None else checks.sizes(key)[0]
    if key is None and key_labels is not None:
        raise ValueError("key=None takes its labels from query_labels; leave key_labels out")
    if key is None:
        key_labels = query_labels
    _check_integers("targets", targets, query, rows, "[B]")
    _check_integers("query_labels", query_labels, query, rows, "[B]")
    _check_integers("key_labels", key_labels, query, keys, "[M]")
    checks.int64("ignore_index", ignore_index)
    _check_positives(query, key, keys, targets, query_labels, key_labels)
    checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    _check_symmetric(symmetric, rows, keys, targets, query_labels, reduction)
    temperature = _temperature(temperature, query)
    needs = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (query, key, temperature)]
    return _op.info_nce(
        query,
        key,
        None if queue is None else queue.detach(),
        targets,
        query_labels,
        key_labels,
        temperature,
        symmetric,
        ignore_index,
        reduction,
        *needs,
        backends.requested("info_nce", backend),
    )[0]


def _keys(name: str, value: Tensor | None, query: Tensor) -> Tensor | None:
    if value is None:
        return None
    checks.floating(name, value)
    checks.rank(name, value, "[M, D]")
    if checks.sizes(value)[1] != checks.sizes(query)[1]:
        raise ValueError(f"{name} {tuple(value.shape)} must have the D = {query.shape[1]} features of query")
    checks.same_device(**{"query": query, name: value})
    value = autocast.cast(value)
    checks.same_dtype(**{"query": query, name: value})
    return value


def _check_integers(name: str, value: Tensor | None, query: Tensor, length: int, meaning: str) -> None:
    if value is None:
        return
    checks.tensor(name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {value.dtype}; use {name}.long()")
    checks.shape(name, value, (length,), meaning)
    checks.same_device(**{"query": query, name: value})


def _check_positives(
    query: Tensor,
    key: Tensor | None,
    keys: int,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
) -> None:
    if targets is not None and (query_labels is not None or key_labels is not None):
        raise ValueError("give targets (one positive per query) or labels (any number), not both")
    if (query_labels is None) != (key_labels is None):
        missing = "query_labels" if query_labels is None else "key_labels"
        raise ValueError(f"labels are compared with each other: {missing} is missing")
    if targets is not None or query_labels is not None:
        return
    if key is None:
        raise ValueError(
            "with key=None the positives must be said: by targets (SimCLR: the index of the other view) "
            "or by query_labels (SupCon)"
        )
    if keys < checks.sizes(query)[0]:
        raise ValueError(
            f"without targets key i is the positive of query i, so M must be at least B = {query.shape[0]}, "
            f"got M = {keys}; give targets or labels"
        )


def _check_symmetric(
    symmetric: bool,
    queries: int,
    keys: int,
    targets: Tensor | None,
    query_labels: Tensor | None,
    reduction: str,
) -> None:
    if not symmetric:
        return
    if targets is not None:
        raise ValueError(
            "symmetric=True does not go with targets, which say nothing of each key's positive; use labels"
        )
    if queries != keys and (query_labels is None or reduction == "none"):
        why = "without labels" if query_labels is None else 'with reduction="none"'
        raise ValueError(f"symmetric=True {why} needs B = M, got B = {queries} and M = {keys}")


def _temperature(temperature: float | Tensor, query: Tensor) -> Tensor:
    """A 0-dim tensor in the dtype of accumulation, so that no backend needs two ways to take it."""
    dtype = autocast.wide(query.dtype)
    if isinstance(temperature, Tensor):
        checks.floating("temperature", temperature)
        if tuple(temperature.shape) not in ((), (1,)):
            raise ValueError(
                f"temperature must be one number, of shape [] or [1], got {tuple(temperature.shape)}"
            )
        checks.same_device(query=query, temperature=temperature)
        return temperature.to(dtype).reshape(())
    checks.positive("temperature", temperature)
    info = torch.finfo(dtype)
    if not info.tiny <= temperature <= info.max:  # 1 / t must be finite too
        raise ValueError(
            f"temperature must be a positive finite number of {dtype}, got {temperature}. "
            f"Give one from {info.tiny:.3g} to {info.max:.3g}."
        )
    return torch.full((), temperature, dtype=dtype, device=query.device)
