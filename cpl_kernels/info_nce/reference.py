"""info_nce in plain PyTorch: the definition that every backend is tested against.

It holds the [B, M] matrix, because it is the definition; what the op keeps for the backward does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.autocast import wide

Statistics = tuple[Tensor, Tensor]  # log-sum-exp and number of positives, per row (or column)


def info_nce(
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
) -> Tensor:
    """The definition; differentiable any number of times."""
    return forward(
        query,
        key,
        queue,
        targets,
        query_labels,
        key_labels,
        temperature,
        symmetric,
        ignore_index,
        reduction,
    )[0]


def forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the loss, and (log-sum-exp, number of positives) of the rows and of the columns ([0] if none)."""
    logits = _logits(query, key, temperature)
    positive, bad = _positives(logits, key, targets, query_labels, key_labels, ignore_index)
    compared = _mask_self(logits, key)  # [B, M]
    with_queue = compared if queue is None else torch.cat((compared, _logits(query, queue, temperature)), 1)
    row_lse, row_positives = _statistics(with_queue, positive, bad)
    loss = _losses(row_lse, row_positives, logits, positive)
    if symmetric:
        column_lse, column_positives = _statistics(compared.T, positive.T, None)
        columns = _losses(column_lse, column_positives, logits.T, positive.T)
        loss = 0.5 * _reduce(loss, row_positives, reduction) + 0.5 * _reduce(
            columns, column_positives, reduction
        )
    else:
        column_lse, column_positives = row_lse.new_empty(0), row_positives.new_empty(0)
        loss = _reduce(loss, row_positives, reduction)
    return loss, row_lse, row_positives, column_lse, column_positives


def backward(
    dloss: Tensor,
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    temperature: Tensor,
    row_lse: Tensor,
    row_positives: Tensor,
    column_lse: Tensor,
    column_positives: Tensor,
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dquery, dkey and dtemperature; one not needed is of shape [0].

    With Y_ij = 1 for positives and 0 else, r_i the share of row i in the reduction times dloss (half
    of it if symmetric), and likewise c_j of column j:
        G_ij = r_i (exp(s_ij - lse_i) - Y_ij / |P(i)|) + c_j (exp(s_ij - lse_j) - Y_ij / |P(j)|)
        dquery = G key / t,   dkey = G^T query / t,   dt = -sum(G * s) / t
    The second term of G is not there for the queue, nor if not symmetric. With key=None both gradients
    belong to query.
    """
    logits = _logits(query, key, temperature)
    positive, _ = _positives(logits, key, targets, query_labels, key_labels, ignore_index)
    compared = _mask_self(logits, key)
    dloss = (0.5 if symmetric else 1) * dloss.to(logits.dtype)
    share = _share(dloss, row_positives, reduction)
    g = _dlogits(share, row_lse, row_positives, compared, positive)
    if symmetric:
        columns = _share(dloss, column_positives, reduction)
        g = g + _dlogits(columns, column_lse, column_positives, compared.T, positive.T).T
    q, k = query.to(logits.dtype), (query if key is None else key).to(logits.dtype)
    dquery, dtemperature = g @ k, (g * logits).sum()
    if queue is not None:
        more = _logits(query, queue, temperature)
        g_more = share * torch.exp(more - row_lse[:, None])
        dquery = dquery + g_more @ queue.to(logits.dtype)
        dtemperature = dtemperature + (g_more * more).sum()
    if key is None:
        dquery = dquery + g.T @ q
    return (
        (dquery / temperature).to(query.dtype) if need_query else query.new_empty(0),
        (g.T @ q / temperature).to(query.dtype) if need_key else query.new_empty(0),
        -dtemperature / temperature if need_temperature else temperature.new_empty(0),
    )


def why_not(query: Tensor) -> str | None:
    return None


def _logits(query: Tensor, key: Tensor | None, temperature: Tensor) -> Tensor:
    dtype = wide(query.dtype)
    return query.to(dtype) @ (query if key is None else key).to(dtype).T / _checked(temperature)


def _checked(temperature: Tensor) -> Tensor:
    """NaN for a temperature that is not positive: on CUDA nobody looked at it."""
    return torch.where(temperature > 0, temperature, torch.nan)


def _mask_self(logits: Tensor, key: Tensor | None) -> Tensor:
    if key is not None:
        return logits
    diagonal = torch.eye(logits.shape[0], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(diagonal, -torch.inf)


def _positives(
    logits: Tensor,
    key: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor | None]:
    """Which pairs are positive, [B, M], and which rows have a target that is no key, [B] or None."""
    row = torch.arange(logits.shape[0], device=logits.device)[:, None]
    column = torch.arange(logits.shape[1], device=logits.device)
    if targets is not None:
        positive = (targets[:, None] == column) & (targets != ignore_index)[:, None]
    elif query_labels is not None and key_labels is not None:
        positive = (query_labels[:, None] == key_labels) & (query_labels != ignore_index)[:, None]
    else:
        positive = row == column
    if key is None:
        positive = positive & (row != column)
    bad = None if targets is None else (targets != ignore_index) & ~positive.any(dim=1)
    return positive, bad


def _statistics(logits: Tensor, positive: Tensor, bad: Tensor | None) -> Statistics:
    """A row without a positive gets +inf, one with a bad target NaN and the count 1, so that it shows."""
    count = positive.sum(dim=1)
    lse = torch.where(count > 0, logits.logsumexp(dim=1), torch.inf)
    if bad is not None:
        lse, count = torch.where(bad, torch.nan, lse), torch.where(bad, 1, count)
    return lse, count


def _losses(lse: Tensor, count: Tensor, logits: Tensor, positive: Tensor) -> Tensor:
    mean = torch.where(positive, logits, 0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, lse - mean, 0)


def _reduce(losses: Tensor, count: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (count > 0).sum().clamp(min=1) if reduction == "mean" else total


def _share(dloss: Tensor, count: Tensor, reduction: str) -> Tensor:
    """What a change of each row's loss does to the result, times dloss; [B, 1], or [1, 1] if all alike."""
    if reduction == "mean":
        dloss = dloss / (count > 0).sum().clamp(min=1)
    return dloss.reshape(-1, 1)


def _dlogits(share: Tensor, lse: Tensor, count: Tensor, logits: Tensor, positive: Tensor) -> Tensor:
    wanted = positive.to(logits.dtype) / count.clamp(min=1)[:, None]
    return share * (torch.exp(logits - lse[:, None]) - wanted)
