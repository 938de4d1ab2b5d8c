"""The 1x1 convolution as a module."""

from __future__ import annotations

from torch import Tensor, nn

from cpl_kernels import pointwise_conv


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution without bias, [B, C, H, W] -> [B, C', H, W]: a Conv2d that computes
    :func:`cpl_kernels.pointwise_conv`, which has a first derivative in reverse mode only."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # as any Conv2d: an image without a batch
            return pointwise_conv(x[None], self.weight)[0]
        return pointwise_conv(x, self.weight)
