"""info_nce on CPU tensors with its products on the processor's matrix units (cpl_kernels.products)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import products
from cpl_kernels.core import core
from cpl_kernels.info_nce import tiled
from cpl_kernels.info_nce.native import NativeTiles
from cpl_kernels.info_nce.tiles import Factor, Place, round_up
from cpl_kernels.products import Right

# What can be done to some rows of a tile while they are in the cache.
BY_BLOCKS = ("rows", "whole_rows", "gradient")


@dataclass(frozen=True)
class OnUnits:
    """A right factor on the matrix units, rows of which can be cut out."""

    right: Right

    def __getitem__(self, rows: slice) -> OnUnits:
        return OnUnits(self.right.part(rows))


class UnitTiles(NativeTiles):
    """As NativeTiles, multiplied on the matrix units. Where some number has no pieces torch multiplies after all.

    Products of which only the sums of rows, or gradients, are wanted are worked on by blocks of rows while these are in
    the cache.
    """

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype, keep: int = 0) -> None:
        super().__init__(query, temperature, given, keep)
        self._pieces = products.PIECES[given]
        # By address, shape and strides: operands may share memory.
        self._rights = dict[tuple[Any, ...], Right]()
        self._has_pieces = products.have_pieces(query)

    def factor(self, operand: Tensor) -> Factor:
        return OnUnits(self._right(operand))

    def put_product(self, total: Tensor, g: Tensor, x: OnUnits, add: bool = False) -> None:  # type: ignore[override]
        if x.right.packed is None:
            tiled.put_product(total, g, x.right.plain, add)
        else:
            x.right.multiply(g, total, add)

    def rows_of_whole(self, columns: int) -> int:
        return round_up(super().rows_of_whole(columns), products.PANEL)

    def _work(self, what: str, query: Tensor, key: Tensor, place: Place, *args: Any) -> Tensor:
        by_blocks = what in BY_BLOCKS and not place.without_diagonal and place not in self._kept
        right = self._of_columns(key, place) if by_blocks and self._has_pieces else None
        if right is None or right.packed is None:
            return super()._work(what, query, key, place, *args)
        # Of the sums of rows alone no products stay: no memory, at the address 0.
        made = query.new_empty(0, right.plain.shape[1]) if what == "rows" else self._memory(query, place)
        left = products.plain_args(place.rows.padded(self.multiple).of(query))
        multiply = getattr(core(), f"info_nce_multiply_{what}")
        multiply(left, right.args, self._args(made, place), *args, self._threads)
        return made

    def _put(self, made: Tensor, query: Tensor, key: Tensor, place: Place) -> None:
        right = self._of_columns(key, place)
        if not self._has_pieces or right.packed is None:
            super()._put(made, query, key, place)
        else:
            left = place.rows.padded(self.multiple).of(query)
            right.multiply(left, made, above_diagonal=place.without_diagonal)
            if place.without_diagonal:
                self._mirror(made)

    def _of_columns(self, key: Tensor, place: Place) -> Right:
        columns = place.columns.padded(self.multiple)
        return self._right(key.T).part(slice(None), slice(columns.first, columns.end))

    def _right(self, x: Tensor) -> Right:
        which = x.data_ptr(), x.shape, x.stride()
        if which not in self._rights:
            self._rights[which] = Right.of(x, self._pieces, self._workspace.bytes)
        return self._rights[which]
