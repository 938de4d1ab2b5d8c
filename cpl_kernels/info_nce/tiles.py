"""What the tiled backends of info_nce work on: tiles of similarities and sums over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from cpl_kernels.info_nce.positives import Positives

# A tensor, or what a backend has in its place; [first:end] cuts out rows.
Factor: TypeAlias = Any


@dataclass(frozen=True)
class Span:
    """Neighbouring rows or columns, [first, end)."""

    first: int
    end: int

    def of(self, x: Tensor) -> Tensor:
        return x[self.first : self.end]

    def padded(self, multiple: int) -> Span:
        return Span(self.first, round_up(self.end, multiple))


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def spans(count: int, most: int, first: int = 0) -> Iterator[Span]:
    for begin in range(first, count, most):
        yield Span(begin, min(count, begin + most))


@dataclass(frozen=True)
class Place:
    """Where a tile is; ``without_diagonal``: the keys are the queries, and none is compared with itself."""

    rows: Span
    columns: Span
    without_diagonal: bool = False


@dataclass(frozen=True)
class Sums:
    """Of each row (or column), from the tiles seen so far, in products: a logit is a product over the temperature.

    The temperature comes last, so that what products have in common cancels exactly.

    Attributes:
        data: [3, n] float64: the largest, the sum of exp((each - largest) / temperature), the sum of the positives.
    """

    data: Tensor

    @classmethod
    def of(cls, count: int, device: torch.device) -> Sums:
        nothing = torch.tensor([[-torch.inf], [0.0], [0.0]], dtype=torch.float64, device=device)
        return cls(nothing.expand(3, count).clone())

    def clone(self) -> Sums:
        return Sums(self.data.clone())

    def finish(self, count: Tensor, temperature: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of all tiles: the two sums that op.py tells of, [2, n] in ``dtype``, and the losses in float64, 0 where there
        is not one positive. ``count``: of positives, [n] int64."""
        largest, total, positive = self.data
        kept = torch.stack((largest, torch.where(count > 0, total, torch.inf))).to(dtype)
        wanted = count.clamp(min=1)
        # Products of fp32 and their sums are exact in fp64: what they have in common cancels before it is rounded.
        lacks = (largest * wanted - positive) / wanted / temperature.double()
        return kept, torch.where(count > 0, total.log() + lacks, 0.0)


@dataclass(frozen=True)
class Side:
    """What the gradient needs of the rows, or of the columns: by the product x in row i it is

        weight_i * exp((x - largest_i) / temperature) - (wanted_i if the pair is positive)

    Attributes:
        largest, weight, wanted: [n] in the dtype of accumulation. ``weight`` is the row's share in the result by the
            temperature and by the sum of its exponentials, 0 where the row does not count. Where the tile's rows are
            whole, ``largest`` is None and ``weight`` is not by that sum: the tile has both.
    """

    largest: Tensor | None
    weight: Tensor
    wanted: Tensor


class Tiles(Protocol):
    """A backend's kernels on the tiles of a call.

    Attributes:
        row_step, column_step: the rows and columns of a tile, at most; multiples of ``multiple``.
        multiple: queries, keys and features are padded with zeros to a multiple of it.
        scale: 1 / temperature, a number or a float64 tensor.
        dscale: [B] float64: for each row the sum, over the tiles so far, of gradient times what the logit lacks of the
            largest of its row, and likewise of its column. A row's gradients add up to 0, and so do a column's: the
            logits themselves would give the same, rounded to their last place.
    """

    row_step: int
    column_step: int
    multiple: int
    dscale: Tensor

    @property
    def scale(self) -> float | Tensor: ...

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype) -> None:
        """query: an operand; ``given``: the dtype that it was given in."""

    @staticmethod
    def operand(x: Tensor) -> Tensor:
        """Queries or keys as the kernels take them: in one piece, padded."""

    def factor(self, operand: Tensor) -> Factor:
        """An operand as it is multiplied by gradients."""

    def put_product(self, total: Tensor, g: Tensor, x: Factor, add: bool = False) -> None:
        """total = g @ x, or total += g @ x; total may be wider."""

    def add(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        rows: Sums,
        columns: Sums | None,
        positives: Positives | None,
    ) -> None:
        """Adds a tile to the sums of its rows and, if they are given, of its columns."""

    def finish(self, sums: Sums, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As Sums.finish, at the call's temperature."""

    def reduce(self, losses: Tensor, count: Tensor, reduction: str) -> Tensor:
        """The sum of losses, or their mean over those with a positive, in float64; or the losses as they are."""

    def side(
        self, sums: Tensor | None, dloss: Tensor, count: Tensor, reduction: str, dtype: torch.dtype
    ) -> Side:
        """Of all rows, or columns. ``sums``: as ``finish`` made them, None where the tiles' rows are whole; ``dloss``:
        of the result, float64; ``count``: of positives, [n] int64."""

    def gradient(
        self,
        query: Tensor,
        key: Tensor,
        place: Place,
        positives: Positives | None,
        rows: Side,
        columns: Side | None,
    ) -> Tensor:
        """The gradient of the loss by the products of a tile, valid until the next call.

        [rows, columns], both padded: 0 there, as a padded query or key is.
        """


class WholeRows(Tiles, Protocol):
    """A backend whose tiles may have all columns, and may be kept.

    The products of those tiles that, in their order, still fit into ``keep`` elements stay from ``add`` until
    ``gradient``. There is no queue then.
    """

    def __init__(self, query: Tensor, temperature: Tensor, given: torch.dtype, keep: int = 0) -> None: ...

    def rows_of_whole(self, columns: int) -> int:
        """How many whole rows a tile has, at most."""

    def whole_rows(
        self, query: Tensor, key: Tensor, place: Place, sums: Sums, positives: Positives, side: Side
    ) -> Tensor:
        """For a tile of all columns: sets the sums of its rows, and returns what ``gradient`` returns."""
