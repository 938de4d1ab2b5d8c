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
    """Of each row (or column), from the tiles seen so far; a logit is ``unit`` times the similarities in it.

    Attributes:
        data: [3, n] float64: the largest, the sum of exp(unit * (each - largest)), the sum of the positives.
        unit: a backend's choice: 1 where it sums logits, 1 / temperature where it sums products.
    """

    data: Tensor
    unit: float

    @classmethod
    def of(cls, count: int, device: torch.device, unit: float) -> Sums:
        nothing = torch.tensor([[-torch.inf], [0.0], [0.0]], dtype=torch.float64, device=device)
        return cls(nothing.expand(3, count).clone(), unit)

    def clone(self) -> Sums:
        return Sums(self.data.clone(), self.unit)

    def finish(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of all tiles: the log-sum-exps in ``dtype``, +inf where there is no positive, and the losses in float64, 0
        there. ``count``: of positives, [n] int64."""
        largest, total, positive = self.data
        logs = total.log()
        lse = torch.where(count > 0, largest * self.unit + logs, torch.inf).to(dtype)
        # The largest is often the positive: the difference loses nothing then.
        return lse, torch.where(count > 0, logs + (largest - positive / count.clamp(min=1)) * self.unit, 0.0)


@dataclass(frozen=True)
class Side:
    """What the gradient needs of the rows, or of the columns: of logit s in row i, times 1 / temperature,

        share_i * exp(s - lse_i) - (wanted_i if the pair is positive)

    Attributes:
        lse, share, wanted: [n] in the dtype of accumulation; lse is +inf where a row does not count, and None where
            the tile's rows are whole, so that it comes from the tile.
    """

    lse: Tensor | None
    share: Tensor
    wanted: Tensor


class Tiles(Protocol):
    """A backend's kernels on the tiles of a call.

    Attributes:
        row_step, column_step: the rows and columns of a tile, at most; multiples of ``multiple``.
        multiple: queries, keys and features are padded with zeros to a multiple of it.
        unit: of its sums.
        dscale: [B] float64: for each row the sum of gradient times logit over the tiles so far.
    """

    row_step: int
    column_step: int
    multiple: int
    unit: float
    dscale: Tensor

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
        """As Sums.finish."""

    def reduce(self, losses: Tensor, count: Tensor, reduction: str) -> Tensor:
        """The sum of losses, or their mean over those with a positive, in float64; or the losses as they are."""

    def side(
        self, lse: Tensor | None, dloss: Tensor, count: Tensor, reduction: str, dtype: torch.dtype
    ) -> Side:
        """Of all rows, or columns. ``dloss``: of the result, float64; ``count``: of positives, [n] int64."""

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
