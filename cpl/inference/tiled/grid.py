"""Where tiles lie in an image, and how much each counts where several meet."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cpl.models.restorer import MULTIPLE

SMALLEST = (
    64  # pixels; of a smaller tile most is border, and its features at 1/8 of the size are 7x7 or fewer
)


def check_tile(tile: int, overlap: int | None = None) -> int:
    """The overlap of tiles of side ``tile``, in pixels: ``overlap``, or, if that is None, an eighth of the tile.

    Raises:
        TypeError: either is no int.
        ValueError: tile is not a multiple of 8 from 64 on, or overlap not one from 0 to half of the tile.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise TypeError(f"{name} must be an int (pixels) or None, got {value!r}")
    if tile < SMALLEST or tile % MULTIPLE:
        near = max(SMALLEST, round(tile / MULTIPLE) * MULTIPLE)
        raise ValueError(
            f"tile must be a multiple of {MULTIPLE} and at least {SMALLEST} pixels, got {tile}: try {near}"
        )
    if overlap is None:
        return tile // 8 // MULTIPLE * MULTIPLE
    if not 0 <= overlap <= tile // 2 or overlap % MULTIPLE:
        raise ValueError(
            f"overlap must be a multiple of {MULTIPLE} from 0 to half of the tile ({tile // 2}), got {overlap}"
        )
    return overlap


def check_tiles(tile: int | None, overlap: int | None, limited: bool = False) -> None:
    """Refuse what `restore` cannot do.

    Raises:
        TypeError, ValueError: a tile or overlap that cannot be, an overlap without a tile, or tiles with ``limited``
            memory.
    """
    if tile is None:
        if overlap is not None:
            raise ValueError(f"overlap is that of tiles, and no tile is given, got overlap={overlap}")
        return
    check_tile(tile, overlap)
    if limited:
        raise ValueError(
            "memory restores exactly, window by window, and tile does not: give one of the two, not both"
        )


@dataclass(frozen=True)
class Grid:
    """Tiles of one size that cover an image of ``size`` (H, W), both multiples of 8.

    Attributes:
        tile: (h, w) of each tile; a side of the image that is shorter than a tile is taken whole.
        tops, lefts: where the rows and columns of tiles begin, multiples of 8.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @staticmethod
    def over(size: tuple[int, int], tile: int, overlap: int) -> Grid:
        """As few tiles as overlap by ``overlap`` at least, evenly spread."""
        height, width = size
        tops, lefts = (_starts(length, min(tile, length), overlap) for length in size)
        return Grid(size, (min(tile, height), min(tile, width)), tops, lefts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def ramps(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """By top [h] and by left [w], in float64: a tile's pixel (y, x) counts ramps[0][top][y] * ramps[1][left][x].
        At every pixel of the image the sum over the tiles is 1."""
        down, across = (
            dict(zip(starts, _ramps(starts, side, length), strict=True))
            for starts, side, length in zip((self.tops, self.lefts), self.tile, self.size, strict=True)
        )
        return down, across

    def sample(self, most: int) -> list[tuple[int, int]]:
        """At most that many corners, spread evenly over rows and columns; all of them if there are no more."""
        rows, columns = len(self.tops), len(self.lefts)
        while rows * columns > most:
            if rows > columns:
                rows -= 1
            else:
                columns -= 1
        return [(top, left) for top in _spread(self.tops, rows) for left in _spread(self.lefts, columns)]


def _starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Rounding down to a multiple of 8 moves neighbours apart by no more than side - overlap, which is one."""
    count = 1 if length == side else 1 + math.ceil((length - side) / (side - overlap))
    apart = max(1, count - 1)
    return tuple((length - side) * i // apart // MULTIPLE * MULTIPLE for i in range(count))


def _spread(values: tuple[int, ...], count: int) -> list[int]:
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


def _ramps(starts: tuple[int, ...], side: int, length: int) -> list[Tensor]:
    """Along one axis, of each tile the weights [side] in float64: raised cosines over the overlaps, divided by their
    sum, which differs from 1 only where three tiles meet."""
    ramps = [torch.ones(side, dtype=torch.float64) for _ in starts]
    for i in range(len(starts) - 1):
        shared = starts[i] + side - starts[i + 1]
        rise = torch.sin(math.pi / 2 * (torch.arange(shared, dtype=torch.float64) + 0.5) / shared).square()
        ramps[i + 1][:shared] *= rise
        ramps[i][side - shared :] *= rise.flip(0)
    total = torch.zeros(length, dtype=torch.float64)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start : start + side] += ramp
    return [ramp / total[start : start + side] for start, ramp in zip(starts, ramps, strict=True)]
