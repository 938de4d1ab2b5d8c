"""Halving and doubling an image's size by rearranging pixels, after a convolution.

Source: Shi et al., "Real-Time Single Image and Video Super-Resolution", arXiv 1609.05158; as used in
Restormer, arXiv 2111.09881, section 3.
"""

from __future__ import annotations

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
