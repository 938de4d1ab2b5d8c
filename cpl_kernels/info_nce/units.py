"""info_nce on CPU tensors with its products on the processor's matrix units (cpl_kernels.products)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import products
from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.info_nce import compiled, tiled
from cpl_kernels.info_nce.native import NativeTiles
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Factor, Place, Side, Sums, round_up
from cpl_kernels.products import Right


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
        self._rights = dict[
            tuple[Any, ...], Right
        ]()  # by address, shape and strides: operands may share memory
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

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        factors = self._factors(query, key, place) if columns is None else None
        if factors is None:
            super().add(query, key, place, rows, columns, positives)
        else:
            padded = place.columns.padded(self.multiple)
            tile = self._tile(0, padded.end - padded.first, DTYPE_CODES[query.dtype], place)
            core().info_nce_multiply_rows(
                *factors, tile, compiled.sums(rows), compiled.positives(positives), self._threads
            )

    def whole_rows(
        self, query: Tensor, key: Tensor, place: Place, sums: Sums, positives: Positives, side: Side
    ) -> Tensor:
        factors = self._factors(query, key, place)
        if factors is None:
            return super().whole_rows(query, key, place, sums, positives, side)
        made = self._memory(query, place)
        core().info_nce_multiply_whole_rows(
            *factors,
            self._args(made, place),
            compiled.sums(sums),
            compiled.positives(positives),
            compiled.side(side),
            self.dscale.data_ptr(),
            self._threads,
        )
        return made

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        factors = None if place in self._kept else self._factors(query, key, place)
        if factors is None:
            return super().gradient(query, key, place, positives, rows, columns)
        made = self._memory(query, place)
        core().info_nce_multiply_gradient(
            *factors,
            self._args(made, place),
            compiled.positives(positives),
            compiled.side(rows),
            compiled.side(columns),
            self.dscale.data_ptr(),
            self._threads,
        )
        return made

    def _factors(self, query: Tensor, key: Tensor, place: Place) -> tuple[Any, Any] | None:
        """Of a tile, as the core takes them; None where it must be multiplied otherwise."""
        if place.without_diagonal or not self._has_pieces:
            return None
        right = self._of_columns(key, place)
        if right.packed is None:
            return None
        return products.plain_args(place.rows.padded(self.multiple).of(query)), right.args

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
