"""What the two compiled backends of info_nce share: how the core is told of sums, positives and sides (bind.h)."""

from __future__ import annotations

from torch import Tensor

from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Side, Sums


def sums(of: Sums | None) -> tuple[int, int]:
    return (0, 0) if of is None else (of.data.data_ptr(), of.data.shape[1])


def positives(of: Positives | None) -> tuple[int, ...]:
    if of is None:
        return 0, 0, 0, 0
    return tuple(map(_address, (of.row_targets, of.column_targets, of.row_labels, of.column_labels)))


def side(of: Side | None) -> tuple[int, ...]:
    return (0, 0, 0) if of is None else tuple(map(_address, (of.largest, of.weight, of.wanted)))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
