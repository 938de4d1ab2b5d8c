"""Halving and doubling an image's size by rearranging pixels, after a convolution; and parts of a resized map.

Source: Shi et al., "Real-Time Single Image and Video Super-Resolution", arXiv 1609.05158; as used in
Restormer, arXiv 2111.09881, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Downsample(nn.Module):
    """[B, C, H, W] -> [B, 2C, H/2, W/2]: a 3x3 convolution C -> C/2, then pixel unshuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsample(nn.Module):
    """[B, C, H, W] -> [B, C/2, 2H, 2W]: a 3x3 convolution C -> 2C, then pixel shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels * 2, 3, padding=1, bias=False), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def bilinear_neighbours(
    size: int, source: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of ``size`` outputs the two of ``source`` inputs it lies between, int64, and the second one's share,
    float32; all [size]. As torch.nn.functional.interpolate(mode="bilinear", align_corners=False)."""
    if size == source:
        index = torch.arange(size, device=device)
        return index, index, torch.zeros(size, device=device)
    centre = ((torch.arange(size, dtype=torch.float64) + 0.5) * (source / size) - 0.5).clamp_min(0)
    before = centre.floor().long().clamp_max(source - 1)
    after = (before + 1).clamp_max(source - 1)
    return before.to(device), after.to(device), (centre - before).float().to(device)


def resized_window(small: Tensor, size: tuple[int, int], rows: range, columns: range) -> Tensor:
    """What bilinear interpolation of ``small`` [C, h, w] to ``size`` (H, W) has in those rows and columns.

    Rows and columns beyond the resized map are zeros, as a convolution pads it. Nothing larger than the result is made.

    Returns:
        [C, len(rows), len(columns)] in the dtype of ``small``.
    """
    part = small
    for dim, wanted in ((1, rows), (2, columns)):
        length = size[dim - 1]
        before, after, share = bilinear_neighbours(length, small.shape[dim], small.device)
        place = torch.arange(wanted.start, wanted.stop, device=small.device)
        within = place.clamp(0, length - 1)
        shape = (-1, 1) if dim == 1 else (-1,)
        mixed = share[within].to(small.dtype).reshape(shape)
        inside = (place == within).to(small.dtype).reshape(shape)
        first, second = (part.index_select(dim, index[within]) for index in (before, after))
        part = (first * (1 - mixed) + second * mixed) * inside
    return part
