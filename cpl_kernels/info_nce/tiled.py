"""info_nce by tiles, whatever makes them: no backend's whole matrix is ever there.

The sums of exponentials come first, in one sweep over the tiles for rows and columns alike; the backward makes the
tiles again. Where the keys are the queries only the upper triangle of tiles is visited. Where whole rows can be had at
a time and there is one direction, the gradient comes with the forward, from three products of matrices
instead of four: ``forward_with_gradients``. So it does otherwise, where the tiles that fit into memory of the
order of the operands are kept between the two sweeps, and only the rest is made again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Place, Side, Span, Sums, Tiles, WholeRows, round_up, spans

# mm(..., out_dtype=) came with torch 2.8, for CUDA tensors alone.
_SUMS_IN_FP32 = "out_dtype" in (torch.mm.__doc__ or "")

# Terms that a CPU's product sums in one go. Longer sums MKL shares out among threads, so that their bits depend on the
# number of these; torch has no word for that. Tried: from 1024 terms on; from 512 for small results in fp32 (up to
# 48 x 144) and bf16 (up to 64 x 1024); from 256 in fp64 (up to 176 x 1024).
SUMMED, SUMMED_INTO_SMALL, SUMMED_IN_FP64 = 512, 256, 128
SMALL, SMALL_IN_BF16 = 2**15, 2**17  # elements of a result
KEPT = 2**22  # similarities that are kept in any case: 16 MiB in fp32


def forward(
    tiles_of: type[Tiles],
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
    """As reference.forward."""
    q = tiles_of.operand(query.detach())
    keys = q if key is None else tiles_of.operand(key.detach())
    positives = _positives(query, key, targets, query_labels, key_labels, ignore_index)
    return _forward(
        tiles_of(q, temperature, query.dtype), q, keys, positives, query, key, queue, symmetric, reduction
    )


def _forward(
    tiles: Tiles,
    q: Tensor,
    keys: Tensor,
    positives: Positives,
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    symmetric: bool,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``forward`` of the operands ``q`` and ``keys``."""
    rows = Sums.of(len(query), q.device)
    columns = rows if key is None else Sums.of(len(key), q.device) if symmetric else None
    for place in _places(tiles, query, key):
        twice = key is None and place.without_diagonal  # on the diagonal a tile has each pair twice
        tiles.add(q, keys, place, rows, None if twice else columns, positives)
    of_columns = columns.clone() if symmetric and columns is not None else None
    if queue is not None:  # after the columns have their sums: the queue is none of theirs
        more = tiles.operand(queue)
        for place in _places(tiles, query, queue):
            tiles.add(q, more, place, rows, None, None)
    dtype = wide(query.dtype)
    row_sums, row_losses = tiles.finish(rows, positives.row_count, dtype)
    if positives.bad is not None:
        row_sums, row_losses = (torch.where(positives.bad, torch.nan, x) for x in (row_sums, row_losses))
    loss = tiles.reduce(row_losses, positives.row_count, reduction)
    if of_columns is None:
        none = row_sums.new_empty(2, 0), positives.row_count.new_empty(0)
        return loss.to(dtype), row_sums, positives.row_count, *none
    column_sums, column_losses = tiles.finish(of_columns, positives.column_count, dtype)
    loss = 0.5 * loss + 0.5 * tiles.reduce(column_losses, positives.column_count, reduction)
    return loss.to(dtype), row_sums, positives.row_count, column_sums, positives.column_count


def forward_with_gradients(
    tiles_of: type[WholeRows],
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
) -> tuple[Tensor, ...]:
    """``forward`` with reduction "mean" or "sum", and the gradients for a loss gradient of 1.

    The gradients are in the dtype of accumulation: they are still to be multiplied by the loss's, and rounded
    once. One not needed is of shape [0].
    """
    q = tiles_of.operand(query.detach())
    positives = _positives(query, key, targets, query_labels, key_labels, ignore_index)
    needs = (need_query, need_key, need_temperature)
    if key is not None and not symmetric:
        return _by_whole_rows(tiles_of, q, positives, query, key, queue, temperature, reduction, *needs)
    keys = q if key is None else tiles_of.operand(key.detach())
    tiles = tiles_of(q, temperature, query.dtype, keep=kept_at_most(q, keys))
    outputs = _forward(tiles, q, keys, positives, query, key, queue, symmetric, reduction)
    one = torch.ones((), dtype=torch.float64, device=q.device)
    gradients = _backward(
        tiles, q, keys, positives, one, query, key, queue, *outputs[1:], symmetric, reduction, *needs
    )
    return *outputs, *gradients


def kept_at_most(q: Tensor, keys: Tensor) -> int:
    """How many similarities are kept between the sweeps: KEPT, or twice as many as queries and keys have elements (the
    queries counting as keys too, where they are)."""
    return max(KEPT, 2 * (q.numel() + keys.numel()))


def _by_whole_rows(
    tiles_of: type[WholeRows],
    q: Tensor,
    positives: Positives,
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    temperature: Tensor,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
) -> tuple[Tensor, ...]:
    # One matrix of keys makes whole rows; the copy is little beside a product.
    all_keys = key.detach() if queue is None else torch.cat((key.detach(), queue))
    keys, dtype = tiles_of.operand(all_keys), wide(query.dtype)
    positives = positives.with_columns(len(all_keys) - len(key))
    one = torch.ones((), dtype=torch.float64, device=q.device)
    tiles = tiles_of(q, temperature, query.dtype)
    side = tiles.side(None, one, positives.row_count, reduction, dtype)
    sums = Sums.of(len(query), q.device)
    with_gradient = round_up(len(key), tiles.multiple)  # of the keys: the queue has none
    any_tile = len(query) > 0 and len(all_keys) > 0
    dquery = _unset_gradient(q, q.dtype, need_query, any_tile)
    dkey = _unset_gradient(keys[:with_gradient], q.dtype, need_key, any_tile)
    q_factor, key_factor = map(tiles.factor, (q, keys))
    for i in spans(len(query), tiles.rows_of_whole(len(all_keys))) if len(all_keys) else ():
        g = tiles.whole_rows(q, keys, Place(i, Span(0, len(all_keys))), sums, positives, side)
        padded = i.padded(tiles.multiple)
        if need_query:
            tiles.put_product(padded.of(dquery), g, key_factor)
        if need_key:
            tiles.put_product(dkey, g[:, :with_gradient].T, padded.of(q_factor), add=i.first > 0)
    row_sums, losses = tiles.finish(sums, positives.row_count, dtype)
    dtemperature = -tiles.dscale.sum().to(dtype) if need_temperature else q.new_empty(0)
    loss = tiles.reduce(losses, positives.row_count, reduction).to(dtype)
    return (
        loss,
        row_sums,
        positives.row_count,
        row_sums.new_empty(2, 0),
        positives.row_count.new_empty(0),
        _like(query, dquery, need_query),
        _like(key, dkey, need_key),
        dtemperature,
    )


def backward(
    tiles_of: type[Tiles],
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
    """As reference.backward."""
    q = tiles_of.operand(query.detach())
    keys = q if key is None else tiles_of.operand(key.detach())
    positives = _positives(query, key, targets, query_labels, key_labels, ignore_index)
    dquery, dkey, dtemperature = _backward(
        tiles_of(q, temperature, query.dtype),
        q,
        keys,
        positives,
        dloss,
        query,
        key,
        queue,
        row_sums,
        row_positives,
        column_sums,
        column_positives,
        symmetric,
        reduction,
        need_query,
        need_key,
        need_temperature,
    )
    return dquery.to(query.dtype), dkey.to(query.dtype), dtemperature


def _backward(
    tiles: Tiles,
    q: Tensor,
    keys: Tensor,
    positives: Positives,
    dloss: Tensor,
    query: Tensor,
    key: Tensor | None,
    queue: Tensor | None,
    row_sums: Tensor,
    row_positives: Tensor,
    column_sums: Tensor,
    column_positives: Tensor,
    symmetric: bool,
    reduction: str,
    need_query: bool,
    need_key: bool,
    need_temperature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``backward`` of the operands ``q`` and ``keys``, with gradients in the dtype of accumulation."""
    dtype = wide(query.dtype)
    q_factor, key_factor = map(tiles.factor, (q, keys))
    dloss = (0.5 if symmetric else 1) * dloss.double()
    row_side = tiles.side(row_sums, dloss, row_positives, reduction, dtype)
    column_side = tiles.side(column_sums, dloss, column_positives, reduction, dtype) if symmetric else None
    left, right = row_side, column_side
    if key is None:  # a tile stands for its mirror image too
        left = right = row_side
    if key is None and symmetric:
        left = right = _both_directions(
            tiles, dloss, row_sums, row_positives, column_sums, column_positives, reduction
        )
    any_tile = len(query) > 0 and len(keys) > 0
    dquery = _unset_gradient(q, dtype, need_query, any_tile)
    dkey = _unset_gradient(keys, dtype, need_key and key is not None, any_tile)
    for place in _places(tiles, query, key):
        # On the diagonal a tile has each pair twice.
        dscale = place.rows.of(tiles.dscale)
        before = dscale.clone() if place.without_diagonal else None
        g = tiles.gradient(q, keys, place, positives, left, right)
        if before is not None:
            dscale.add_(before).mul_(0.5)
        i, j = place.rows.padded(tiles.multiple), place.columns.padded(tiles.multiple)
        # The first tile of rows, or of columns, sets what others add to.
        if need_query:
            tiles.put_product(i.of(dquery), g, j.of(key_factor), add=j.first > 0)
        if need_query and key is None and not place.without_diagonal:
            tiles.put_product(j.of(dquery), g.T, i.of(q_factor), add=i.first > 0)
        if need_key and key is not None:
            tiles.put_product(j.of(dkey), g.T, i.of(q_factor), add=i.first > 0)
    if queue is not None:
        more = tiles.operand(queue)
        more_factor = tiles.factor(more)
        for place in _places(tiles, query, queue):
            g = tiles.gradient(q, more, place, None, row_side, None)
            i, j = place.rows.padded(tiles.multiple), place.columns.padded(tiles.multiple)
            if need_query:
                tiles.put_product(i.of(dquery), g, j.of(more_factor), add=True)
    dtemperature = -tiles.dscale.sum().to(dtype) if need_temperature else dquery.new_empty(0)
    return (
        _like(query, dquery, need_query),
        _like(query if key is None else key, dkey, need_key and key is not None),
        dtemperature,
    )


def _both_directions(
    tiles: Tiles,
    dloss: Tensor,
    row_sums: Tensor,
    row_positives: Tensor,
    column_sums: Tensor,
    column_positives: Tensor,
    reduction: str,
) -> Side:
    """Of both directions in one, where the keys are the queries.

    The products of row i are those of column i, and its sum is the column's plus the queue's. So its probabilities
    are those of the column times what the column has of the row's sum, at most 1.
    """
    row_share, column_share = (_share(dloss, n, reduction) for n in (row_positives, column_positives))
    (of_row, row_total), (largest, total) = row_sums.double(), column_sums.double()
    behind = torch.where(row_positives > 0, (largest - of_row) * tiles.scale, 0.0)
    fewer = torch.where(row_positives > 0, torch.exp(behind) * total / row_total, 0.0)
    # A row's gradients add up to 0 only together with the queue's. Those are summed beside the row's largest product,
    # and the keys' beside the column's: what either lacks of 0, times the difference of the two.
    tiles.dscale[: len(behind)].sub_(row_share * (1 - fewer) * behind * tiles.scale)
    weight = (row_share * fewer + column_share) / total * tiles.scale
    wanted = (row_share + column_share) / row_positives.clamp(min=1) * tiles.scale
    dtype = column_sums.dtype
    return Side(column_sums[0], weight.to(dtype), wanted.to(dtype))


def put_product(total: Tensor, g: Tensor, x: Tensor, add: bool = False) -> None:
    """total = g @ x, or total += g @ x, in the dtype of x; total may be wider."""
    g = g.to(x.dtype)
    for terms in spans(len(x), len(x) if g.is_cuda else _summed(total, g)):
        _put_terms(total, g[:, terms.first : terms.end], terms.of(x), add or terms.first > 0)


def _summed(total: Tensor, g: Tensor) -> int:
    if g.dtype == torch.float64:
        return SUMMED_IN_FP64
    small = SMALL_IN_BF16 if g.dtype == torch.bfloat16 else SMALL
    return SUMMED if total.numel() >= small else SUMMED_INTO_SMALL


def _put_terms(total: Tensor, g: Tensor, x: Tensor, add: bool) -> None:
    if total.dtype == g.dtype:
        if add:
            total.addmm_(g, x)
        else:
            torch.mm(g, x, out=total)
        return
    product = torch.mm(g, x, out_dtype=total.dtype) if _SUMS_IN_FP32 and g.is_cuda else g @ x
    if add:
        total.add_(product)
    else:
        total.copy_(product)


def _unset_gradient(x: Tensor, dtype: torch.dtype, needed: bool, written: bool) -> Tensor:
    """Memory for a gradient of ``x``; zeros if no tile will be ``written`` to it. One not needed is of shape [0]."""
    if not needed:
        return x.new_empty(0, dtype=dtype)
    return (torch.empty_like if written else torch.zeros_like)(x, dtype=dtype)


def _like(x: Tensor, gradient: Tensor, needed: bool) -> Tensor:
    """``gradient``, padded, as that of ``x``; copied only if it must be. One not needed is of shape [0]."""
    if needed:
        gradient = gradient[: x.shape[0], : x.shape[1]]
    return gradient.contiguous().detach()  # a gradient that is a view could not be changed in place


def _places(tiles: Tiles, query: Tensor, key: Tensor | None) -> Iterator[Place]:
    """The tiles, row by row. Of queries compared with themselves (``key`` is None) the upper triangle."""
    # Half of a tile on the diagonal is pairs seen twice: small ones waste less.
    step = tiles.row_step if key is not None else max(1, tiles.row_step // 2)
    for i in spans(len(query), step):
        if key is None:
            yield Place(i, i, without_diagonal=True)
            rest = spans(len(query), tiles.column_step, i.end)
        else:
            rest = spans(len(key), tiles.column_step)
        for j in rest:
            yield Place(i, j)


def _positives(
    query: Tensor,
    key: Tensor | None,
    targets: Tensor | None,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    ignore_index: int,
) -> Positives:
    keys = None if key is None else len(key)
    return Positives.of(len(query), keys, targets, query_labels, key_labels, ignore_index, query.device)


def side(
    scale: float | Tensor,
    sums: Tensor | None,
    dloss: Tensor,
    count: Tensor,
    reduction: str,
    dtype: torch.dtype,
) -> Side:
    """As Tiles.side."""
    share = _share(dloss, count, reduction) * scale
    wanted = share / count.clamp(min=1)
    if sums is None:
        return Side(None, share.to(dtype), wanted.to(dtype))
    return Side(sums[0], (share / sums[1]).to(dtype), wanted.to(dtype))


def _share(dloss: Tensor, count: Tensor, reduction: str) -> Tensor:
    """What a change of each row's loss does to the result, times dloss; [rows], 0 where a row does not count."""
    if reduction == "mean":
        dloss = dloss / (count > 0).sum().clamp(min=1)
    return torch.where(count > 0, dloss, 0.0)


def reduce(losses: Tensor, count: Tensor, reduction: str) -> Tensor:
    """As Tiles.reduce."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / (count > 0).sum().clamp(min=1) if reduction == "mean" else total
