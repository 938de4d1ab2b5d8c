"""What torch.func.vmap does with these ops.

Any op can be called once per entry, and the results stacked: that is what vmap means. Where each row of the results
belongs to one row of the inputs (``Rows``), all entries are rows of one call instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Which results of an op belong to which row of its inputs, so that vmap can append rows instead of looping.

    Attributes:
        inputs: position of an argument -> its dimension of rows. Rows do not see one another.
        outputs: the dimension of rows of every result.
    """

    inputs: Mapping[int, int]
    outputs: int = 0


def rule(
    call: Callable[..., Any], fake: Callable[..., Any], rows: Rows | None = None
) -> Callable[..., tuple[Any, Any]]:
    """The rule of torch.func.vmap for an op: all entries as rows of one call where that is the same, else a loop."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        count = info.batch_size
        if count == 0:  # no entry to learn the results' shapes from
            entry = (a if d is None else _without(a, d) for a, d in zip(args, in_dims, strict=True))
            outputs = _each(fake(*entry), lambda y: y.new_empty((0, *y.shape)))
        elif rows is not None and all(d is None or i in rows.inputs for i, d in enumerate(in_dims)):
            outputs = call(
                *(
                    _appended(a, d, rows.inputs.get(i), count)
                    for i, (a, d) in enumerate(zip(args, in_dims, strict=True))
                )
            )
            at = rows.outputs
            outputs = _each(outputs, lambda y: y.unflatten(at, (count, y.shape[at] // count)).movedim(at, 0))
        else:
            every = [
                call(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
                for i in range(count)
            ]
            outputs = (
                torch.stack(every)
                if isinstance(every[0], Tensor)
                else tuple(map(torch.stack, zip(*every, strict=True)))
            )
        return outputs, _each(outputs, lambda _: 0)

    return vmap


def _each(outputs: Any, function: Callable[[Tensor], Any]) -> Any:
    return function(outputs) if isinstance(outputs, Tensor) else tuple(map(function, outputs))


def _without(x: Tensor, dim: int) -> Tensor:
    return x.new_empty((*x.shape[:dim], *x.shape[dim + 1 :]))


def _appended(x: Any, mapped: int | None, rows: int | None, count: int) -> Any:
    """``x`` with the entries along its ``mapped`` dimension (or ``count`` times itself) as further rows."""
    if rows is None or not isinstance(x, Tensor):
        return x
    x = (
        x.unsqueeze(rows).expand(*x.shape[:rows], count, *x.shape[rows:])
        if mapped is None
        else x.movedim(mapped, rows)
    )
    return x.flatten(rows, rows + 1)
