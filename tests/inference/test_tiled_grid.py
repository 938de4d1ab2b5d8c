"""Tiles cover the image, count as one at each pixel, and a few of them stand for all."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from cpl.inference.tiled import Grid, check_tile


# Lengths: of one tile, hardly more, exactly two, where three tiles meet, of many, and with the largest overlap.
@pytest.mark.parametrize("tile_overlap", [(64, 0), (64, 8), (64, 32), (128, 32), (512, 64)])
@pytest.mark.parametrize("length", [64, 72, 120, 128, 192, 520, 968, 4000])
def test_tiles_cover_and_their_weights_are_one(length: int, tile_overlap: tuple[int, int]) -> None:
    tile, overlap = tile_overlap
    grid = Grid.over((length, 256), tile, overlap)
    side = min(tile, length)
    assert grid.tile == (side, min(tile, 256))
    assert (grid.tops[0], grid.tops[-1]) == (0, length - side)
    for first, second in itertools.pairwise(grid.tops):
        assert 0 < second - first <= tile - overlap
        assert second % 8 == 0  # so that features at an eighth of the size lie where the whole image's do
    if length > tile:  # no more tiles than needed
        assert (len(grid.tops) - 1) * (tile - overlap) + tile < length + tile - overlap
    down, across = grid.ramps()
    total = torch.zeros(length, 256, dtype=torch.float64)
    for top, left in grid.corners:
        weight = down[top][:, None] * across[left]
        assert float(weight.min()) > 0
        total[top : top + side, left : left + grid.tile[1]] += weight
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)


def test_weights_are_raised_cosines_over_the_overlap() -> None:
    down, _ = Grid.over((64 + 48, 64), 64, 16).ramps()
    first, second = down[0], down[48]
    assert bool((first[:48] == 1).all())
    assert bool((second[16:] == 1).all())
    expected = [math.sin(math.pi / 2 * (i + 0.5) / 16) ** 2 for i in range(16)]
    torch.testing.assert_close(second[:16], torch.tensor(expected, dtype=torch.float64))
    assert float(first.diff().abs().max()) < 2 / 16  # no step, where a plain mean has two of a half


def test_a_sample_is_spread_over_rows_and_columns() -> None:
    grid = Grid.over((4000, 3000), 512, 64)
    rows, columns = len(grid.tops), len(grid.lefts)
    assert rows * columns > 16
    sample = grid.sample(16)
    assert len(sample) == len(set(sample)) <= 16
    assert len(sample) > 8
    assert set(sample) <= set(grid.corners)
    tops, lefts = sorted({top for top, _ in sample}), sorted({left for _, left in sample})
    assert len(tops) * len(lefts) == len(sample)
    for taken, every in ((tops, grid.tops), (lefts, grid.lefts)):
        assert min(taken) <= every[len(every) // len(taken)]
        assert max(taken) >= every[-1 - len(every) // len(taken)]
    assert grid.sample(rows * columns) == grid.corners
    assert Grid.over((8000, 64), 64, 0).sample(16)[0] != (0, 0)  # the middle of each part


def test_the_default_overlap() -> None:
    assert [check_tile(tile) for tile in (64, 128, 200, 512)] == [8, 16, 24, 64]
    assert check_tile(64, 0) == 0
