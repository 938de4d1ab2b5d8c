"""info_nce in Triton, for CUDA tensors (or CPU tensors under TRITON_INTERPRET=1).

A program multiplies a block of queries by one block of keys after the other, in 16 bits where the inputs are, summed in
fp32; it keeps the sums of its rows online and leaves one partial for each column. The partials are put
together in order afterwards: no atomics, the same bits every time. Backward a program leaves its block of the
gradient by the products, in fp32, and torch multiplies that by keys and queries; a strip at a time, so the whole
matrix is never there.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cpl_kernels import dispatch
from cpl_kernels.autocast import wide
from cpl_kernels.info_nce import tiled
from cpl_kernels.info_nce.positives import Positives
from cpl_kernels.info_nce.tiles import Place, Side, Sums

# Rows, columns and features of a block, warps: in fp32, which has no tensor cores, and where a row of features is no
# whole number of 16 bytes, since its elements are then fetched one by one by as many addresses; in 16 bits; and in 16
# bits for many blocks where that was measured (an H200): elsewhere 128 by 128 logits do not stay in the registers.
WIDE, NARROW, NARROW_MANY = (64, 64, 32, 8), (64, 64, 64, 4), (128, 128, 64, 8)
MANY_ON = ("sm_90",)
PROGRAMS = 264  # wanted: two for each of 132 multiprocessors
MOST_COLUMNS = 2048  # of a program of the forward
MERGED, MERGE_WARPS = 256, 4  # rows of a program that puts partial sums together
NO_TAGS, BY_PLACE, BY_LABEL = 0, 1, 2


def why_not(query: Tensor) -> str | None:
    if query.dtype == torch.float64:
        return "it has no float64 kernel"
    return None


@triton.jit
def _scale(temperature):
    """NaN for a temperature that is not positive."""
    t = tl.load(temperature)
    return tl.where(t > 0, 1.0 / t, float("nan"))


@triton.jit
def _products(
    query, key, row, row_end, column, column_end, features, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr
):
    """[rows, columns]; the scale comes last, so that what they have in common cancels exactly."""
    products = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for first in range(0, features, BLOCK_D):
        feature = first + tl.arange(0, BLOCK_D)
        known = (feature < features)[None, :]
        a = tl.load(query + row[:, None] * features + feature[None, :], (row < row_end)[:, None] & known, 0.0)
        b = tl.load(
            key + column[:, None] * features + feature[None, :], (column < column_end)[:, None] & known, 0.0
        )
        if WIDEN:  # Triton's interpreter gets bf16 products wrong
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, tl.trans(b), products, input_precision="ieee")
    return products


@triton.jit
def _inside(row, row_end, column, column_end, DIAGONAL: tl.constexpr):
    inside = (row < row_end)[:, None] & (column < column_end)[None, :]
    if DIAGONAL:
        inside = inside & (row[:, None] != column[None, :])
    return inside


@triton.jit
def _row_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS: tl.constexpr):
    """Which pairs are positive for their row: its tag is the column's place, or the column's tag."""
    own = tl.load(row_tags + row, row < row_end, -1)
    if TAGS == 2:
        return own[:, None] == tl.load(column_tags + column, column < column_end, -2)[None, :]
    return own[:, None] == column[None, :]


@triton.jit
def _column_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS: tl.constexpr):
    theirs = tl.load(column_tags + column, column < column_end, -2)
    if TAGS == 2:
        return theirs[None, :] == tl.load(row_tags + row, row < row_end, -1)[:, None]
    return theirs[None, :] == row[:, None]


@triton.jit
def _finite(largest):
    """0 for the -inf of a row that has seen nothing: exp(-inf - 0) is 0."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _leading(x):
    """The first 12 bits of a number. Sums of 2^12 such of one size are exact in fp32."""
    return (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def forward_kernel(
    query, key, temperature, row_tags, column_tags,
    of_rows, of_columns,
    first_row, rows, first_column, columns, features,
    TAGS: tl.constexpr, DIAGONAL: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
    STEP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """of_rows: [parts, n, rows], a part for each STEP columns; of_columns: [blocks of rows, n, columns].

    n is 3: the largest product, the sum of exponentials, and that of the positives' products, of which by place there
    is but one. With labels it is 4, and the positives' sum is that of their leading bits and that of the rest.
    """
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row_end, column_end = first_row + rows, first_column + columns
    row = first_row + block * BLOCK_M + tl.arange(0, BLOCK_M)
    PARTS: tl.constexpr = 4 if TAGS == 2 else 3
    scale = _scale(temperature)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    positive = tl.zeros((BLOCK_M,), tl.float32)
    rest = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, STEP, BLOCK_N):
        column = first_column + part * STEP + start + tl.arange(0, BLOCK_N)
        x = _products(query, key, row, row_end, column, column_end, features, BLOCK_D, WIDEN)
        inside = _inside(row, row_end, column, column_end, DIAGONAL)
        masked = tl.where(inside, x, float("-inf"))
        of_block = of_columns + block * PARTS * columns + (column - first_column)
        if TAGS == 2:  # what is positive for the row is for the column
            mine = _row_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS) & inside
            leading = tl.where(mine, _leading(x), 0.0)
            positive += tl.sum(leading, 1)
            if COLUMNS:
                tl.store(of_block + 2 * columns, tl.sum(leading, 0), column < column_end)
            others = tl.where(mine, x, 0.0) - leading
            rest += tl.sum(others, 1)
            if COLUMNS:
                tl.store(of_block + 3 * columns, tl.sum(others, 0), column < column_end)
        elif TAGS != 0:
            mine = _row_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS) & inside
            positive += tl.sum(tl.where(mine, x, 0.0), 1)
            if COLUMNS:
                theirs = (
                    _column_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS) & inside
                )
                tl.store(of_block + 2 * columns, tl.sum(tl.where(theirs, x, 0.0), 0), column < column_end)
        before = largest
        largest = tl.maximum(largest, tl.max(masked, 1))
        m = _finite(largest)
        total = total * tl.exp((before - m) * scale) + tl.sum(tl.exp((masked - m[:, None]) * scale), 1)
        if COLUMNS:
            m = tl.max(masked, 0)
            tl.store(of_block, m, column < column_end)
            m = _finite(m)
            tl.store(
                of_block + columns, tl.sum(tl.exp((masked - m[None, :]) * scale), 0), column < column_end
            )
    sums = of_rows + part * PARTS * rows + (row - first_row)
    tl.store(sums, largest, row < row_end)
    tl.store(sums + rows, total, row < row_end)
    tl.store(sums + 2 * rows, positive, row < row_end)
    if TAGS == 2:
        tl.store(sums + 3 * rows, rest, row < row_end)


@triton.jit
def gradient_kernel(
    query, key, temperature, row_tags, column_tags,
    row_largest, row_weight, row_wanted, column_largest, column_weight, column_wanted,
    gradient, of_scale,
    first_row, rows, first_column, columns, features,
    TAGS: tl.constexpr, DIAGONAL: tl.constexpr, COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """gradient: [rows, columns]; of_scale: [blocks of columns, rows], what is added to dscale."""
    block, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row_end, column_end = first_row + rows, first_column + columns
    row = first_row + block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = first_column + part * BLOCK_N + tl.arange(0, BLOCK_N)
    x = _products(query, key, row, row_end, column, column_end, features, BLOCK_D, WIDEN)
    scale = _scale(temperature)
    inside = _inside(row, row_end, column, column_end, DIAGONAL)
    below = (x - tl.load(row_largest + row, row < row_end, 0.0)[:, None]) * scale
    g = tl.load(row_weight + row, row < row_end, 0.0)[:, None] * tl.exp(below)
    if TAGS != 0:
        mine = _row_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS)
        g -= tl.where(mine, tl.load(row_wanted + row, row < row_end, 0.0)[:, None], 0.0)
    g = tl.where(inside, g, 0.0)
    lacks = tl.sum(tl.where(inside, g * below, 0.0), 1)
    if COLUMNS:
        below = (x - tl.load(column_largest + column, column < column_end, 0.0)[None, :]) * scale
        other = tl.load(column_weight + column, column < column_end, 0.0)[None, :] * tl.exp(below)
        if TAGS != 0:
            theirs = _column_positives(row, row_end, column, column_end, row_tags, column_tags, TAGS)
            if TAGS == 2:  # the same pairs
                theirs = mine
            other -= tl.where(theirs, tl.load(column_wanted + column, column < column_end, 0.0)[None, :], 0.0)
        other = tl.where(inside, other, 0.0)
        lacks += tl.sum(tl.where(inside, other * below, 0.0), 1)
        g += other
    tl.store(of_scale + part * rows + (row - first_row), lacks, row < row_end)
    at = gradient + (row - first_row)[:, None] * columns + (column - first_column)[None, :]
    tl.store(at, g.to(gradient.dtype.element_ty), (row < row_end)[:, None] & (column < column_end)[None, :])


@triton.jit
def merge_kernel(
    parts, data, temperature, count, rows, first, every, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds parts [count, PARTS, rows] to the sums data [3, every] from ``first`` on, in fp64 and in order."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = row < rows
    known = data + first + row
    scale = _scale(temperature).to(tl.float64)
    before = tl.load(known, real, float("-inf"))
    largest = before
    for part in range(count):
        at = parts + tl.cast(part, tl.int64) * PARTS * rows + row
        largest = tl.maximum(largest, tl.load(at, real, float("-inf")).to(tl.float64), tl.PropagateNan.ALL)
    base = tl.where(
        largest == float("-inf"), 0.0, largest
    )  # of a row that has seen nothing: exp(-inf - 0) is 0
    total = tl.load(known + every, real, 0.0) * tl.exp(((before - base) * scale).to(tl.float32)).to(
        tl.float64
    )
    positive = tl.load(known + 2 * tl.cast(every, tl.int64), real, 0.0)
    for part in range(count):
        at = parts + tl.cast(part, tl.int64) * PARTS * rows + row
        of_part = tl.load(at, real, float("-inf")).to(tl.float64)
        factor = tl.exp(((of_part - base) * scale).to(tl.float32))
        total += tl.load(at + rows, real, 0.0).to(tl.float64) * factor.to(tl.float64)
        positive += tl.load(at + 2 * tl.cast(rows, tl.int64), real, 0.0).to(tl.float64)
        if PARTS == 4:
            positive += tl.load(at + 3 * tl.cast(rows, tl.int64), real, 0.0).to(tl.float64)
    tl.store(known, largest, real)
    tl.store(known + every, total, real)
    tl.store(known + 2 * tl.cast(every, tl.int64), positive, real)


class TritonTiles:
    """Strips of the matrix; each is a launch of many programs."""

    row_step, column_step = 4096, 8192  # 64 MiB of gradients in bf16
    multiple = 1

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype) -> None:
        self._temperature, self._given = temperature, given
        self.scale = 1 / temperature.double()
        self._widen = query.device.type == "cpu"
        self.dscale = torch.zeros(len(query), dtype=torch.float64, device=query.device)

    @staticmethod
    def operand(x: Tensor) -> Tensor:
        return x.contiguous()

    def factor(self, operand: Tensor) -> Tensor:
        return operand.to(self._factor_dtype())

    put_product = staticmethod(tiled.put_product)

    def _factor_dtype(self) -> torch.dtype:
        """Of the gradient by the products, and of what it is multiplied by: bf16 for bf16 inputs, on the tensor cores.

        Their result is rounded to bf16 anyway. fp16 has not the range for a gradient divided by the rows.
        """
        return self._given if self._given == torch.bfloat16 and not self._widen else wide(self._given)

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        size = self._size(query, place)
        _, height, _, width, _ = size
        constants = self._constants(query, place)
        step = _columns_of_program(height, width, constants["BLOCK_M"], constants["BLOCK_N"])
        grid = (triton.cdiv(height, constants["BLOCK_M"]), triton.cdiv(width, step))
        tags, row_tags, column_tags = self._tags(positives)
        each = 4 if tags == BY_LABEL else 3
        of_rows = torch.empty((grid[1], each, height), dtype=torch.float32, device=query.device)
        parts = grid[0] if columns is not None else 0
        of_columns = torch.empty((parts, each, width), dtype=torch.float32, device=query.device)
        forward_kernel[grid](
            query, key, self._temperature, row_tags, column_tags, of_rows, of_columns, *size,
            TAGS=tags, COLUMNS=columns is not None, STEP=step, **constants,
        )  # fmt: skip
        self._merge(rows, place.rows.first, of_rows)
        if columns is not None:
            self._merge(columns, place.columns.first, of_columns)

    def finish(self, sums: Sums, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return sums.finish(count, self._temperature, dtype)

    reduce = staticmethod(tiled.reduce)

    def side(
        self, sums: Tensor | None, dloss: Tensor, count: Tensor, reduction: str, dtype: torch.dtype
    ) -> Side:
        return tiled.side(self.scale, sums, dloss, count, reduction, dtype)

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        size = self._size(query, place)
        _, height, _, width, _ = size
        constants = self._constants(query, place)
        grid = (triton.cdiv(height, constants["BLOCK_M"]), triton.cdiv(width, constants["BLOCK_N"]))
        gradient = torch.empty((height, width), dtype=self._factor_dtype(), device=query.device)
        of_scale = torch.empty((grid[1], height), dtype=torch.float32, device=query.device)
        tags, row_tags, column_tags = self._tags(positives)
        other = rows if columns is None else columns  # not read
        gradient_kernel[grid](
            query, key, self._temperature, row_tags, column_tags,
            rows.largest, rows.weight, rows.wanted, other.largest, other.weight, other.wanted,
            gradient, of_scale, *size,
            TAGS=tags, COLUMNS=columns is not None, **constants,
        )  # fmt: skip
        place.rows.of(self.dscale).add_(of_scale.sum(0, dtype=torch.float64))
        return gradient

    def _merge(self, sums: Sums, first: int, parts: Tensor) -> None:
        """Adds partial sums [parts, 3 or 4, n] to those from ``first`` on."""
        count, each, rows = parts.shape
        if parts.numel():
            merge_kernel[(triton.cdiv(rows, MERGED),)](
                parts, sums.data, self._temperature, count, rows, first, sums.data.shape[1],
                PARTS=each, BLOCK=MERGED, num_warps=MERGE_WARPS,
            )  # fmt: skip

    def _tags(self, positives: Positives | None) -> tuple[int, Tensor, Tensor]:
        """How positives are told, and the rows' and columns' tags; what is not read is any tensor."""
        p = positives
        if p is None:
            return NO_TAGS, self._temperature, self._temperature
        if p.row_labels is not None and p.column_labels is not None:
            return BY_LABEL, p.row_labels, p.column_labels
        assert p.row_targets is not None
        return BY_PLACE, p.row_targets, p.row_targets if p.column_targets is None else p.column_targets

    @staticmethod
    def _size(query: Tensor, place: Place) -> tuple[int, int, int, int, int]:
        i, j = place.rows, place.columns
        return i.first, i.end - i.first, j.first, j.end - j.first, query.shape[1]

    def _constants(self, query: Tensor, place: Place) -> dict[str, Any]:
        rows, columns = (span.end - span.first for span in (place.rows, place.columns))
        blocks = WIDE
        if query.dtype != torch.float32 and query.shape[1] % 8 == 0:
            many = triton.cdiv(rows, NARROW_MANY[0]) * triton.cdiv(columns, NARROW_MANY[1]) >= PROGRAMS
            blocks = NARROW_MANY if many and dispatch.family(query.device) in MANY_ON else NARROW
        return {
            "DIAGONAL": place.without_diagonal,
            "WIDEN": self._widen,
            **dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_D", "num_warps"), blocks, strict=True)),
        }


def _columns_of_program(height: int, width: int, rows: int, columns: int) -> int:
    """Of the forward: as many as leave enough programs; a power of two times ``columns``."""
    step = columns
    while 2 * step <= MOST_COLUMNS and triton.cdiv(height, rows) * triton.cdiv(width, 2 * step) >= PROGRAMS:
        step *= 2
    return step


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tiled.forward(TritonTiles, *args)


def backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tiled.backward(TritonTiles, *args)
