"""info_nce on CPU tensors: tiles are multiplied, and our C++ (csrc/info_nce/cpu.cpp) does the rest in the cache.

A processor's matrix units multiply, where it has them (units.py), faster than torch does; else torch.

All sizes that torch's product sees are padded to multiples of 16. At others MKL's bits depend on the number of threads,
which cuts the result differently: then single columns meet another kernel. tests/kernels hold it to that.
16-bit inputs are widened for the similarities: torch has no CPU product of them with a result in float32, and one
rounded to bf16 would make an error of 3 % in a softmax of temperature 0.07. Gradients are multiplied in bf16 where
the inputs are bf16 and the processor has instructions for it: twice as fast, and rounded to bf16 they are in the end.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from cpl_kernels import products
from cpl_kernels.autocast import wide
from cpl_kernels.core import DTYPE_CODES, core
from cpl_kernels.info_nce import compiled, tiled
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Factor, Place, Side, Sums, round_up, spans
from cpl_kernels.info_nce.workspace import Workspace

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
# Products of few vectors, of more features than SUMMED_AT_ONCE, are sums of parts of PART features. Where the rows are
# fewer than 16, torch's own product errs less than half as much as one of 16 padded rows does; by parts ours errs no
# more (2.1e-5 for 2.5e-5 with 512 features of standard deviation 3), and one batched product is as quick.
FEW, SUMMED_AT_ONCE, PART = 2**10, 128, 16
UNITS_FROM = 2**16  # elements of query: with fewer, packing the factors costs more than the units save
BF16_FROM = 2**14  # elements of query: with fewer, rounding gradients costs more than their products


def why_not(query: Tensor) -> str | None:
    return None


def forward(query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tiled.forward(_tiles(query), query, *args)


def forward_with_gradients(query: Tensor, *args: Any) -> tuple[Tensor, ...]:
    return tiled.forward_with_gradients(_tiles(query), query, *args)


def backward(dloss: Tensor, query: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tiled.backward(_tiles(query), dloss, query, *args)


def _tiles(query: Tensor) -> type[NativeTiles]:
    from cpl_kernels.info_nce.units import UnitTiles  # which is a NativeTiles

    on_units = query.dtype in products.PIECES and query.numel() >= UNITS_FROM and products.available()
    return UnitTiles if on_units else NativeTiles


@functools.cache
def _multiplies_bf16() -> bool:
    """Whether bf16 products are quicker than fp32 ones here; without such instructions they are many times slower."""
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name for it
    return any(getattr(torch.cpu, name, lambda: False)() for name in tests)


class NativeTiles:
    """One buffer for all tiles of a call but the kept ones, and the kernels that work on them."""

    # Of a tile: its products stay in the caches. (Whole rows have all columns.)
    row_step, column_step, multiple = 512, 1024, 16

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype, keep: int = 0) -> None:
        self._given = given
        self.scale = 1 / float(temperature)
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

    def factor(self, operand: Tensor) -> Factor:
        narrow = self._given == torch.bfloat16 and self._large and _multiplies_bf16()
        return operand.to(self._given) if narrow else operand

    put_product = staticmethod(tiled.put_product)

    def finish(self, sums: Sums, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        kept = torch.empty(2, len(count), dtype=dtype)
        losses = torch.empty(len(count), dtype=torch.float64)
        core().info_nce_finish(
            compiled.sums(sums),
            count.data_ptr(),
            self.scale,
            kept.data_ptr(),
            DTYPE_CODES[dtype],
            losses.data_ptr(),
            self._threads,
        )
        return kept, losses

    def reduce(self, losses: Tensor, count: Tensor, reduction: str) -> Tensor:
        if reduction == "none":
            return losses
        mean = reduction == "mean"
        made = core().info_nce_reduce(losses.data_ptr(), count.data_ptr(), len(count), mean)
        return torch.tensor(made, dtype=torch.float64)

    def side(
        self, sums: Tensor | None, dloss: Tensor, count: Tensor, reduction: str, dtype: torch.dtype
    ) -> Side:
        weight, wanted = torch.empty(2, len(count), dtype=dtype).unbind()
        dloss, sums = dloss.contiguous(), None if sums is None else sums.contiguous()
        core().info_nce_side(
            0 if sums is None else sums.data_ptr(),
            dloss.data_ptr(),
            dloss.dim(),
            count.data_ptr(),
            len(count),
            reduction == "mean",
            self.scale,
            weight.data_ptr(),
            wanted.data_ptr(),
            DTYPE_CODES[dtype],
        )
        return Side(None if sums is None else sums[0], weight, wanted)

    def rows_of_whole(self, columns: int) -> int:
        return max(LEAST_ROWS, round_up(self._larger * WHOLE // columns, self.multiple))

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        pairs = compiled.positives(positives)
        if columns is None:
            self._work("rows", query, key, place, compiled.sums(rows), pairs)
        else:
            assert not place.without_diagonal, "on the diagonal a tile has each pair twice"
            self._work(
                "rows_and_columns", query, key, place, compiled.sums(rows), compiled.sums(columns), pairs
            )

    def whole_rows(
        self, query: Tensor, key: Tensor, place: Place, sums: Sums, positives: Positives, side: Side
    ) -> Tensor:
        return self._work(
            "whole_rows",
            query,
            key,
            place,
            compiled.sums(sums),
            compiled.positives(positives),
            compiled.side(side),
            self.dscale.data_ptr(),
        )

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        return self._work(
            "gradient",
            query,
            key,
            place,
            compiled.positives(positives),
            compiled.side(rows),
            compiled.side(columns),
            self.dscale.data_ptr(),
        )

    def _work(self, what: str, query: Tensor, key: Tensor, place: Place, *args: Any) -> Tensor:
        """The products of a tile, after the core's function of that name worked on them."""
        made = self._multiply(query, key, place)
        getattr(core(), f"info_nce_{what}")(self._args(made, place), *args, self._threads)
        return made

    def _multiply(self, query: Tensor, key: Tensor, place: Place) -> Tensor:
        """The products of some queries with some keys, padded: kept ones, or in the memory of the last tile."""
        if place in self._kept:
            return self._kept.pop(place)
        made = self._memory(query, place)
        self._put(made, query, key, place)
        return made

    def _memory(self, query: Tensor, place: Place) -> Tensor:
        """For the products of a tile: to be kept, if they may."""
        i, j = place.rows.padded(self.multiple), place.columns.padded(self.multiple)
        rows, columns = i.end - i.first, j.end - j.first
        elements = rows * columns
        if elements <= self._may_keep:
            self._may_keep -= elements
            return self._kept.setdefault(place, self._workspace.matrix(rows, columns, query.dtype))
        if self._buffer.numel() < elements:
            self._buffer = self._workspace.matrix(1, elements, query.dtype)[0]
        return self._buffer[:elements].view(rows, columns)

    def _put(self, made: Tensor, query: Tensor, key: Tensor, place: Place) -> None:
        """made = query @ key.T of a tile. Of vectors with themselves blocks below the diagonal are copies."""
        a, b = place.rows.padded(self.multiple).of(query), place.columns.padded(self.multiple).of(key)
        if made.numel() <= FEW and a.shape[1] > SUMMED_AT_ONCE and a.shape[1] % PART == 0:
            parts = (x.view(len(x), -1, PART) for x in (a, b))
            left, right = (x.transpose(0, 1) for x in parts)
            torch.sum(torch.bmm(left, right.mT), 0, out=made)
            return
        if a.data_ptr() != b.data_ptr() or len(a) != len(b) or len(a) <= BLOCK:
            tiled.put_product(made, a, b.T)
            return
        for block in spans(len(a), BLOCK):
            tiled.put_product(block.of(made)[:, block.first :], block.of(a), a[block.first :].T)
        self._mirror(made)

    def _mirror(self, made: Tensor) -> None:
        address, dtype = made.data_ptr(), DTYPE_CODES[made.dtype]
        core().info_nce_mirror(address, len(made), made.stride(0), dtype, self._threads)

    def _args(self, made: Tensor, place: Place) -> tuple[int, int, int, int, int, int, bool, float, int]:
        i, j = place.rows, place.columns
        rows, columns = i.end - i.first, j.end - j.first
        numbers = made.data_ptr(), rows, columns, made.shape[1], i.first, j.first
        return *numbers, place.without_diagonal, self.scale, DTYPE_CODES[made.dtype]
