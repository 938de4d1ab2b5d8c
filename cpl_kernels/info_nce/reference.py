"""info_nce in plain PyTorch: the definition that every backend is tested against.

It holds the [B, M] matrix, because it is the definition; what the op keeps for the backward does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cpl_kernels.autocast import wide

# Sums and number of positives, per row (or column). Sums, [2, rows]: the largest product m of those compared, and
# z = sum of exp((product - m) / temperature), +inf where there is no positive. Their log-sum-exp as one number would be
# rounded to the last place of m / temperature, and every probability by as much.
Statistics = tuple[Tensor, Tensor]


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
    """Returns the loss, and (sums, number of positives) of the rows and of the columns ([2, 0] and [0] if none)."""
    products, t = _products(query, key), _checked(temperature)
    positive, bad = _positives(products, key, targets, query_labels, key_labels, ignore_index)
    compared = _compared(products, key)
    all_products, all_compared = products, compared
    if queue is not None:
        more = _products(query, queue)
        all_products = torch.cat((products, more), 1)
        all_compared = torch.cat((compared, torch.ones_like(more, dtype=torch.bool)), 1)
    row_sums, row_positives = _statistics(all_products, all_compared, positive, bad, t)
    loss = _reduce(_losses(row_sums, row_positives, products, positive, t), row_positives, reduction)
    if not symmetric:
        return loss, row_sums, row_positives, row_sums.new_empty(2, 0), row_positives.new_empty(0)
    column_sums, column_positives = _statistics(products.T, compared.T, positive.T, None, t)
    columns = _losses(column_sums, column_positives, products.T, positive.T, t)
    loss = 0.5 * loss + 0.5 * _reduce(columns, column_positives, reduction)
    return loss, row_sums, row_positives, column_sums, column_positives


def backward(
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
    symmetric: bool,
    ignore_index: int,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns dquery, dkey and dtemperature; one not needed is of shape [0].

    With x_ij = <query_i, key_j>, Y_ij = 1 for positives and 0 else, r_i the share of row i in the reduction times
    dloss (half of it if symmetric), m_i and z_i the sums of row i, and likewise c_j, m_j and z_j of column j:
        R_ij = r_i (exp((x_ij - m_i) / t) / z_i - Y_ij / |P(i)|)
        C_ij = c_j (exp((x_ij - m_j) / t) / z_j - Y_ij / |P(j)|)
        dquery = (R + C) key / t,   dkey = (R + C)^T query / t
        dt = -sum(R_ij (x_ij - m_i) + C_ij (x_ij - m_j)) / t^2
    The queue has no C, nor has anything if not symmetric. With key=None both gradients belong to query. A row of R
    sums to 0 over keys and queue, and so does a column of C: so m may be taken off the products in dt.
    """
    products, t = _products(query, key), _checked(temperature)
    positive, _ = _positives(products, key, targets, query_labels, key_labels, ignore_index)
    compared = _compared(products, key)
    dloss = (0.5 if symmetric else 1) * dloss.to(products.dtype)
    share = _share(dloss, row_positives, reduction)
    g, dscale = _dlogits(share, row_sums, row_positives, products, compared, positive, t)
    if symmetric:
        columns = _share(dloss, column_positives, reduction)
        of_columns = _dlogits(columns, column_sums, column_positives, products.T, compared.T, positive.T, t)
        g, dscale = g + of_columns[0].T, dscale + of_columns[1]
    q, k = query.to(products.dtype), (query if key is None else key).to(products.dtype)
    dquery = g @ k
    if queue is not None:
        more = _products(query, queue)
        nothing = torch.zeros_like(more, dtype=torch.bool)
        g_more, dscale_more = _dlogits(share, row_sums, row_positives, more, ~nothing, nothing, t)
        dquery, dscale = dquery + g_more @ queue.to(products.dtype), dscale + dscale_more
    if key is None:
        dquery = dquery + g.T @ q
    return (
        (dquery / t).to(query.dtype) if need_query else query.new_empty(0),
        (g.T @ q / t).to(query.dtype) if need_key else query.new_empty(0),
        -dscale / t if need_temperature else temperature.new_empty(0),
    )


def why_not(query: Tensor) -> str | None:
    return None


def _products(query: Tensor, key: Tensor | None) -> Tensor:
    dtype = wide(query.dtype)
    return query.to(dtype) @ (query if key is None else key).to(dtype).T


def _checked(temperature: Tensor) -> Tensor:
    """NaN for a temperature that is not positive: on CUDA nobody looked at it."""
    return torch.where(temperature > 0, temperature, torch.nan)


def _compared(products: Tensor, key: Tensor | None) -> Tensor:
    """Which pairs are compared, [B, M]."""
    if key is not None:
        return torch.ones_like(products, dtype=torch.bool)
    return ~torch.eye(products.shape[0], dtype=torch.bool, device=products.device)


def _positives(
    products: Tensor,
    key: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor | None]:
    """Which pairs are positive, [B, M], and which rows have a target that is no key, [B] or None."""
    row = torch.arange(products.shape[0], device=products.device)[:, None]
    column = torch.arange(products.shape[1], device=products.device)
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


def _statistics(
    products: Tensor, compared: Tensor, positive: Tensor, bad: Tensor | None, t: Tensor
) -> Statistics:
    """Of each row. One with a bad target gets NaN and the count 1, so that it shows.

    Nothing depends on the largest product but rounding, so no derivative goes through it.
    """
    count = positive.sum(dim=1)
    seen = products.detach().masked_fill(~compared, -torch.inf)
    largest = torch.cat((seen, seen.new_full((len(seen), 1), -torch.inf)), 1).amax(dim=1)
    largest = torch.where(
        largest == -torch.inf, 0, largest
    )  # nothing is compared: there is nothing to take off
    exponents = ((products - largest[:, None]) / t).masked_fill(~compared, -torch.inf)
    sums = torch.stack((largest, torch.where(count > 0, exponents.exp().sum(dim=1), torch.inf)))
    if bad is not None:
        sums, count = torch.where(bad, torch.nan, sums), torch.where(bad, 1, count)
    return sums, count


def _losses(sums: Tensor, count: Tensor, products: Tensor, positive: Tensor, t: Tensor) -> Tensor:
    """log(z) plus what the positives lack of the largest product, whose difference no common offset rounds."""
    largest, total = sums
    lacks = torch.where(positive, (largest[:, None] - products) / t, 0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, torch.where(count > 0, total, 1).log() + lacks, 0)


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


def _dlogits(
    share: Tensor,
    sums: Tensor,
    count: Tensor,
    products: Tensor,
    compared: Tensor,
    positive: Tensor,
    t: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of the rows' losses by their logits, and its sum times (product - largest) / t."""
    largest, total = sums[..., None]
    exponents = (products - largest) / t
    wanted = positive.to(products.dtype) / count.clamp(min=1)[:, None]
    g = torch.where(compared, share * (torch.exp(exponents) / total - wanted), 0)
    return g, torch.where(compared, g * exponents, 0).sum()
