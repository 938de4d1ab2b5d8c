"""info_nce on CPU tensors: tiles are multiplied, and our C++ (csrc/info_nce/cpu.cpp) does the rest in the cache.

A processor's matrix units multiply (cpl_kernels.products), where it has them, at two to six times the speed of torch's
fp32 product; else torch does.

All sizes that torch's product sees are padded to multiples of 16. At others MKL's bits depend on the number of threads,
which cuts the result differently: then single columns meet another kernel. tests/kernels hold it to that.
16-bit inputs are widened for the similarities: torch has no CPU product of them with a result in float32, and one
rounded to bf16 would make an error of 3 % in a softmax of temperature 0.07. Gradients are multiplied in bf16 where
the inputs are bf16 and the processor has instructions for it: twice as fast, and rounded to bf16 they are in the end.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.info_nce import compiled, tiled
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Place, Side, Sums, round_up, spans
from cpl_kernels.info_nce.workspace import Workspace
from cpl_kernels.products import PANEL, PIECES, Right
from cpl_kernels.products import available as units_available

# Products of a tile of whole rows: they stay in the L3 cache, and each of torch's products is long enough that the
# threads' meeting at its end counts for little.
WHOLE = 2**21
LEAST_ROWS = 256  # of such a tile: fewer make slow products
# With this many features multiplying matrices is nearly all the work, and large ones
# are the faster: tiles have twice the rows (3 to 4 % less time at 512; at 128 they would take 7 to 15 % more).
LONG = 256
# From so many bytes of the processor's last cache on tiles have twice the rows and columns: between its large products
# torch finds everything else of its own out of the caches, and that costs more than reading products from the last one
# (with 480 MiB 1 to 27 % less time; with 32 MiB more).
LARGE_CACHE = 2**27
BLOCK = 128  # rows of a tile on the diagonal that are multiplied at a time: what is below them need not be
UNITS_FROM = 2**16  # elements of query: with fewer, packing the factors costs more than the units save
BF16_FROM = 2**14  # elements of query: with fewer, rounding gradients costs more than their products


def why_not(query: Tensor) -> str | None:
    return None


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tiled.forward(NativeTiles, *args)


def forward_with_gradients(*args: Any) -> tuple[Tensor, ...]:
    return tiled.forward_with_gradients(NativeTiles, *args)


def backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tiled.backward(NativeTiles, *args)


@functools.cache
def _multiplies_bf16() -> bool:
    """Whether bf16 products are quicker than fp32 ones here; without such instructions they are many times slower."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for it
    return any(getattr(torch.cpu, name, lambda: False)() for name in tests)


@dataclass(frozen=True)
class OnUnits:
    """A right factor on the matrix units, rows of which can be cut out."""

    right: Right

    def __getitem__(self, rows: slice) -> OnUnits:
        return OnUnits(self.right.part(rows))


class NativeTiles:
    """One buffer for all tiles of a call but the kept ones, and the kernels that work on them."""

    # Of a tile: its products stay in the caches. (Whole rows have all columns.)
    row_step, column_step, multiple = 512, 1024, 16

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype, keep: int = 0) -> None:
        self._given = given
        self._on_units = given in PIECES and units_available() and query.numel() >= UNITS_FROM
        self._rights = dict[tuple[int, tuple[int, ...]], Right]()  # by address and strides
        self.unit = 1 / float(temperature)
        self._larger = 2 if query.shape[1] >= LONG else 1
        again = 2 if core().last_level_cache() >= LARGE_CACHE else 1
        self.row_step = again * self._larger * type(self).row_step
        self.column_step = again * type(self).column_step
        self._large = query.numel() >= BF16_FROM
        self._may_keep, self._kept = keep, dict[Place, Tensor]()
        self._buffer = query.new_empty(0)
        self._workspace = Workspace()
        self._threads = torch.get_num_threads()
        self.dscale = torch.zeros(len(query), dtype=torch.float64)

    @classmethod
    def operand(cls, x: Tensor) -> Tensor:
        rows, features = (round_up(n, cls.multiple) for n in x.shape)
        if (rows, features) == tuple(x.shape):
            return x.to(wide(x.dtype)).contiguous()
        padded = torch.zeros(rows, features, dtype=wide(x.dtype))
        padded[: x.shape[0], : x.shape[1]] = x
        return padded

    def factor(self, operand: Tensor) -> Tensor | OnUnits:
        if self._on_units:
            return OnUnits(self._right(operand))
        narrow = self._given == torch.bfloat16 and self._large and _multiplies_bf16()
        return operand.to(self._given) if narrow else operand

    def put_product(self, total: Tensor, g: Tensor, x: Tensor | OnUnits, add: bool = False) -> None:
        if isinstance(x, Tensor):
            tiled.put_product(total, g, x, add)
        elif x.right.packed is None:
            tiled.put_product(total, g, x.right.plain, add)
        else:
            x.right.multiply(g, total, add)  # a g without pieces: NaN, as 0 times its infinity would be

    def finish(self, sums: Sums, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        lse = torch.empty(len(count), dtype=dtype)
        losses = torch.empty(len(count), dtype=torch.float64)
        core().info_nce_finish(
            compiled.sums(sums),
            count.data_ptr(),
            self.unit,
            lse.data_ptr(),
            DTYPE_CODES[dtype],
            losses.data_ptr(),
            self._threads,
        )
        return lse, losses

    def reduce(self, losses: Tensor, count: Tensor, reduction: str) -> Tensor:
        if reduction == "none":
            return losses
        mean = reduction == "mean"
        made = core().info_nce_reduce(losses.data_ptr(), count.data_ptr(), len(count), mean)
        return torch.tensor(made, dtype=torch.float64)

    def rows_of_whole(self, columns: int) -> int:
        multiple = PANEL if self._on_units else self.multiple
        return max(LEAST_ROWS, round_up(self._larger * WHOLE // columns, multiple))

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        tile, pairs = self._args(self._multiply(query, key, place), place), compiled.positives(positives)
        if columns is None:
            core().info_nce_rows(tile, compiled.sums(rows), pairs, self._threads)
        else:
            assert not place.without_diagonal, "on the diagonal a tile has each pair twice"
            core().info_nce_rows_and_columns(
                tile, compiled.sums(rows), compiled.sums(columns), pairs, self._threads
            )

    def whole_rows(
        self, query: Tensor, key: Tensor, place: Place, sums: Sums, positives: Positives, side: Side
    ) -> Tensor:
        products = self._multiply(query, key, place)
        core().info_nce_whole_rows(
            self._args(products, place),
            compiled.sums(sums),
            compiled.positives(positives),
            compiled.side(side),
            self.dscale.data_ptr(),
            self._threads,
        )
        return products

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        products = self._multiply(query, key, place)
        core().info_nce_gradient(
            self._args(products, place),
            compiled.positives(positives),
            compiled.side(rows),
            compiled.side(columns),
            self.dscale.data_ptr(),
            self._threads,
        )
        return products

    def _multiply(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        """The products of some queries with some keys, padded: kept ones, or in the memory of the last tile."""
        if place in self._kept:
            return self._kept.pop(place)
        a, b = place.rows.padded(self.multiple).of(query), place.columns.padded(self.multiple).of(key)
        elements = len(a) * len(b)
        if elements <= self._may_keep:
            self._may_keep -= elements
            products = self._kept.setdefault(place, self._workspace.matrix(len(a), len(b), query.dtype))
        else:
            if self._buffer.numel() < elements:
                self._buffer = self._workspace.matrix(1, elements, query.dtype)[0]
            products = self._buffer[:elements].view(len(a), len(b))
        if not (self._on_units and self._put_on_units(products, a, key, place)):
            self._put(products, a, b)
        return products

    def _put_on_units(self, products: Tensor, a: Tensor, key: Tensor, place: Place) -> bool:
        """As ``_put``; False if some number has no pieces: nothing is put then."""
        columns = place.columns.padded(self.multiple)
        right = self._right(key.T).part(slice(None), slice(columns.first, columns.end))
        if right.packed is None or not right.multiply(a, products, above_diagonal=place.without_diagonal):
            return False
        if place.without_diagonal:
            self._mirror(products)
        return True

    def _right(self, x: Tensor) -> Right:
        which = x.data_ptr(), x.stride()
        if which not in self._rights:
            self._rights[which] = Right.of(x, PIECES[self._given], self._workspace.bytes)
        return self._rights[which]

    def _put(self, products: Tensor, a: Tensor, b: Tensor) -> None:
        """products = a @ b.T. Of those of vectors with themselves, blocks below the diagonal are copies."""
        if a.data_ptr() != b.data_ptr() or len(a) != len(b) or len(a) <= BLOCK:
            tiled.put_product(products, a, b.T)
            return
        for block in spans(len(a), BLOCK):
            tiled.put_product(block.of(products)[:, block.first :], block.of(a), a[block.first :].T)
        self._mirror(products)

    def _mirror(self, products: Tensor) -> None:
        address, dtype = products.data_ptr(), DTYPE_CODES[products.dtype]
        core().info_nce_mirror(address, len(products), products.stride(0), dtype, self._threads)

    def _args(self, products: Tensor, place: Place) -> tuple[int, int, int, int, int, int, bool, float, int]:
        rows, columns = place.rows, place.columns
        return (
            products.data_ptr(),
            rows.end - rows.first,
            columns.end - columns.first,
            products.shape[1],
            rows.first,
            columns.first,
            place.without_diagonal,
            self.unit,
            DTYPE_CODES[products.dtype],
        )
